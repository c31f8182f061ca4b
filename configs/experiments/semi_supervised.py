"""What few labels are worth with and without pretraining, in the manner of table 2 of BYOL's paper
(Grill et al. 2020).

    python launch.py --config configs/experiments/semi_supervised.py --workdir runs/semi
    python launch.py --config configs/experiments/semi_supervised.py:cifar10 --workdir runs/semi10

1 %, 10 % and all of the labels; a linear classifier of the frozen features, the network fine-tuned,
and the network from scratch; three seeds. `pretraining` is the configuration of the quickstart, or
of configs/cifar10_small.py, on the images that are not held out.

On digits 20 minutes of two cores that many others shared; CIFAR-10 is not measured.

The optimizer is the paper's, Nesterov momentum without weight decay, its rate swept for every share
and arm as there, by held-out images.
"""

from ml_collections import ConfigDict

from configs import cifar10_small, quickstart
from ssl_jax.errors import UserError, nearest

# data: (configuration of pretraining, training images, held-out ones, probability of mirroring,
# pixels of padding, steps with labels)
DATA = {
    "digits": (quickstart, 0, 297, 0.0, 1, 400),
    "cifar10": (cifar10_small, 20_000, 1000, 0.5, 4, 400),
}


def get_config(data: str = "digits") -> ConfigDict:
    if data not in DATA:
        raise UserError(f"data: got {data!r}, {nearest(data, DATA)}")
    module, train_size, validation_size, flip, padding, steps = DATA[data]
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "semi_supervised"
    config.seed = 0  # the first one
    config.seeds = 3
    config.shares = (0.01, 0.1, 1.0)  # of the labels
    config.rates = (
        0.003,
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
    )  # learning rates of fine-tuning and of scratch
    config.penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # L2 of the linear classifier
    config.steps = steps  # with labels, whatever their number
    config.batch_size = 50  # or all the labelled images, where they are fewer
    config.optimizer = "nesterov"
    config.flip = flip  # probability of mirroring
    # pixels around the image, out of which a crop of its size is taken
    config.crop_padding = padding

    config.data = ConfigDict()
    config.data.name = data  # digits, or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = train_size  # the first so many training images; 0: all
    # the last so many of them: what is chosen, is chosen by these
    config.data.validation_size = validation_size
    config.data.image_size = 0  # side in pixels; 0: as in the set

    config.pretraining = module.get_config()
    for name in ("task", "seed", "data"):  # as above
        del config.pretraining[name]
    return config
