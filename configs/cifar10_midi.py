"""CIFAR-10 between mini and full scale: `configs/cifar10_midi.py:METHOD`, the published protocol
with a narrower ResNet-18 and fewer epochs.

All 50 000 images, width 16 in place of 64 (128 features), 30 epochs in place of 100: 11 700 steps.
Everything else is `configs/cifar10.py`, rates and decays included. So rate * decay * steps is 0.14
where it is 0.47 at full scale: less time to collapse, or to come free. Half an hour to an
hour a run on two CPU cores.
"""

from configs import cifar10


def get_config(method: str = "byol"):
    config = cifar10.get_config(method)
    config.encoder.width = 16
    config.epochs = 30
    return config
