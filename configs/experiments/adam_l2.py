"""Weight decay is not L2 under Adam: what each really takes of a weight, and accuracy over the
strength of both.

Few images, so that decay matters.

    python launch.py --config configs/experiments/adam_l2.py --workdir runs/adam_l2

40 seconds of one CPU core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "adam_l2"
    config.seed = 0  # the first one
    config.seeds = 5
    config.sgd_rate = 0.3
    config.adam_rate = 3e-3
    config.weight_decays = (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # lambda
    # one of them: the strength at which the shrinkage of each weight is shown
    config.measured_decay = 1e-4
    config.width = 128
    config.depth = 2
    config.epochs = 100
    config.batch_size = 50

    config.data = ConfigDict()
    config.data.name = "digits"  # or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 500  # the first so many training images; 0: all
    # the last so many of them, by which the best lambda is chosen
    config.data.validation_size = 200
    config.data.image_size = 0  # side in pixels; 0: as in the set
    return config
