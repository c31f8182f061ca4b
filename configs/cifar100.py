"""CIFAR-100 as CIFAR-10 is run: `configs/cifar100.py:METHOD`, with the set's own statistics.

None of the papers pretrains on it without labels, so that there is no published number to expect.
Not measured here. The layer-wise pre-weight-decay paper trains classifiers on it:

    python launch.py --config configs/supervised.py:convnext_tiny --workdir runs/convnext100
    --config.data.name=cifar100
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config(method: str = "byol") -> ConfigDict:
    config = cifar10.get_config(method)
    config.data.name = "cifar100"
    config.views.mean = (0.5071, 0.4865, 0.4409)  # of the training images, in [0, 1]
    config.views.std = (0.2673, 0.2564, 0.2762)
    return config
