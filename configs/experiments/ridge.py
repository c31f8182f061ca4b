"""Ridge regression of pixels: closed form, gradient descent at several rates, and one Newton step.

    python launch.py --config configs/experiments/ridge.py --workdir runs/ridge

Five seconds of one CPU core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "ridge"
    config.steps = 3000
    # in units of 1 / L, beside the best one; from 2 on it diverges
    config.rates = (0.1, 0.5, 1.0, 2.02)

    config.data = ConfigDict()
    config.data.name = "digits"  # or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 0  # the first so many training images; 0: all
    config.data.image_size = 0  # side in pixels; 0: as in the set
    return config
