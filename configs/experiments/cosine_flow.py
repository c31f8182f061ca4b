"""Does a linear network trained on the cosine loss follow the theory's exact flow? 48 random
settings in large batches, by the size of the step; and how small batches scatter around it.

    python launch.py --config configs/experiments/cosine_flow.py --workdir runs/cosine_flow

Needs diffrax: pip install -e '.[theory]'. Ten minutes on two busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "cosine_flow"
    config.seed = 0
    config.settings = 8  # random ones of each of six kinds
    config.dim = 4  # modes
    config.inputs = 5  # N of W (dim, N)
    config.time = 6.0  # of the flow
    config.steps = (36, 72)  # in that time
    config.batch_size = 4096  # new at every step
    config.batch_sizes = (16, 128, 1024)  # smaller ones, for one of the kinds
    return config
