"""CIFAR-10 at a scale for two CPU cores: `configs/cifar10_small.py:METHOD`."""

from configs import defaults
from configs.methods import apply_method


def get_config(method: str = "byol"):
    config = defaults.get_config()
    config.data.train_size = 20_000
    config.encoder.name = "convnet"
    config.encoder.width = 32
    config.projector.hidden = 256
    config.projector.out = 64
    config.predictor.hidden = 256
    config.epochs = 20
    config.eval_every = 5
    config.init = "pytorch"
    return apply_method(config, method)
