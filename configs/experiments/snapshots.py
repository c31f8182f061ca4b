"""A snapshot ensemble against its members, and against a plain run of the same length.

    python launch.py --config configs/experiments/snapshots.py --workdir runs/snapshots

Ten seconds of one CPU core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "snapshots"
    config.seed = 0  # the first one
    config.seeds = 10
    config.epochs = 100
    config.cycles = 5  # they divide the epochs
    config.batch_size = 50
    config.optimizer = "momentum"
    config.learning_rate = 0.3  # at the start of each cycle
    config.weight_decay = 1e-3
    config.width = 128
    config.depth = 2

    config.data = ConfigDict()
    config.data.name = "digits"  # or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 300  # the first so many training images; 0: all
    config.data.image_size = 0  # side in pixels; 0: as in the set
    return config
