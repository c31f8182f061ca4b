"""Random labels learned by heart, with and without weight decay and augmentation, in the manner of
Zhang et al. 2017.

    python launch.py --config configs/experiments/random_labels.py --workdir runs/random_labels
    python launch.py --config configs/experiments/random_labels.py:cifar10 --workdir runs/random10

The second is for a GPU: a small convolutional network on all of CIFAR-10, not measured.

70 seconds of one CPU core (on digits).
"""

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest

# data: (encoder, its width, its depth, epochs, probability of mirroring, pixels of padding)
DATA = {"digits": ("mlp", 256, 2, 150, 0.0, 1), "cifar10": ("convnet", 64, 0, 100, 0.5, 4)}


def get_config(data: str = "digits") -> ConfigDict:
    if data not in DATA:
        raise UserError(f"data: got {data!r}, {nearest(data, DATA)}")
    name, width, depth, epochs, flip, padding = DATA[data]
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "random_labels"
    config.seed = 0  # the first one
    config.seeds = 3
    config.epochs = epochs
    config.batch_size = 128
    config.optimizer = "adam"
    config.learning_rate = 3e-3
    config.weight_decay = 0.1  # decoupled; a step takes learning_rate * weight_decay of a weight
    config.flip = flip  # probability of mirroring, where there is augmentation
    # pixels around the image, out of which a crop of its size is taken
    config.crop_padding = padding

    config.encoder = ConfigDict()
    config.encoder.name = name
    config.encoder.width = width
    config.encoder.depth = depth  # 0: its own

    config.data = ConfigDict()
    config.data.name = data  # digits, or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 0  # the first so many training images; 0: all
    config.data.image_size = 0  # side in pixels; 0: as in the set
    return config
