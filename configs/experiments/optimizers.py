"""Optimizer x learning rate, in the manner of the ADADELTA paper's tables 1 and 2, on its network
500-300 of tanh.

On digits, where an epoch has ten steps; as the paper has it, six epochs of MNIST, where one has
550:

    python launch.py --config configs/experiments/optimizers.py --workdir runs/optimizers
    python launch.py --config configs/experiments/optimizers.py:mnist \\
        --workdir runs/optimizers-mnist

Fewer of them: --config.optimizers="('sgd','adam')".

Two minutes of one CPU core (on digits).
"""

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest

# data: (epochs, held-out training images)
DATA = {"digits": (10, 297), "mnist": (6, 5000)}


def get_config(data: str = "digits") -> ConfigDict:
    if data not in DATA:
        raise UserError(f"data: got {data!r}, {nearest(data, DATA)}")
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "optimizers"
    config.seed = 0  # the first one
    config.seeds = 3
    config.optimizers = (
        *("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamax"),
        *("nadam", "amsgrad", "radam", "adamw", "lookahead", "lion", "lars", "natural"),
    )
    config.rates = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    config.eps = (1e-2, 1e-4, 1e-6, 1e-8)  # of Adadelta, the learning rate being 1 ...
    config.rho = (0.9, 0.95, 0.99)  # ... every one with every other
    config.widths = (500, 300)
    config.activation = "tanh"
    config.init = "glorot"  # the paper does not say
    config.epochs, validation_size = DATA[data]
    config.batch_size = 100

    config.data = ConfigDict()
    config.data.name = data  # digits, or any set of TFDS
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 0  # the first so many training images; 0: all
    # the last so many of them, by which the best rate is chosen
    config.data.validation_size = validation_size
    config.data.image_size = 0  # side in pixels; 0: as in the set
    return config
