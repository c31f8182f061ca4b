"""STL-10, the original's main data set: `configs/stl10.py:METHOD`. 96x96, pretraining on train +
unlabelled.

Tian et al. 2021 (arXiv 2102.06810), Table 8, 100 epochs, mean of 5: DirectPred 77.86, every 5 steps
77.54, linear predictor 75.06. Their code: ImageNet's stem (7x7, stride 2, max-pool; CIFAR's is for
CIFAR-10 alone), loss -2 cos, PyTorch initialisation, biases throughout, decay on every parameter.
Not run here yet: 105 000 images of 96x96 need an accelerator.
"""

from configs import defaults
from configs.methods import apply_method


def get_config(method: str = "directpred"):
    config = defaults.get_config()
    config.data.name = "stl10"
    config.views.recipe = "stl10"
    config.encoder.stem = "imagenet"
    config.init = "pytorch"
    config.loss_scale = 2.0
    config.projector.output_bias = True
    config.optimizer.exclude = ""
    config.probe.protocol = "original"
    return apply_method(config, method)
