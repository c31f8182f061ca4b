"""Vanishing and exploding gradients: multi-layer perceptrons of every depth, activation and
initialisation.

    python launch.py --config configs/experiments/signal.py --workdir runs/signal

Other lists: --config.depths=3,10 and --config.inits="('he','glorot')".

80 seconds of one CPU core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "signal"
    config.seed = 0  # the first one
    config.seeds = 3
    config.depths = (3, 10, 30)  # hidden layers
    config.activations = ("sigmoid", "tanh", "relu", "leaky_relu", "gelu")
    config.inits = ("gaussian", "pytorch", "glorot", "he", "orthogonal")
    config.width = 64
    config.norm = "none"  # none | batch | layer
    config.epochs = 20
    config.batch_size = 128
    config.optimizer = "momentum"
    config.learning_rate = 0.01
    config.watched_images = 256  # the first so many training images: the gradient is taken on these

    config.data = ConfigDict()
    config.data.name = "digits"  # or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 0  # the first so many training images; 0: all
    config.data.image_size = 0  # side in pixels; 0: as in the set
    return config
