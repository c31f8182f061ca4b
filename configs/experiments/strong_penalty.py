"""Strong penalty: loss and accuracy where learning rate and decay are both large (the paper's
figure 1).

    python launch.py --config configs/experiments/strong_penalty.py --workdir runs/strong_penalty

Ten times the base rates of robustness.py, and the largest decay, as in the paper; there Adam alone.
"""

from ml_collections import ConfigDict

from configs.experiments.common import base


def get_config() -> ConfigDict:
    config = base("strong_penalty")
    config.seeds = 3
    config.arms = ("WD", "RWD", "PWD", "LPWD")
    config.strong = ConfigDict()
    config.strong.weight_decay = 0.5
    config.strong.rates = ConfigDict()  # optimizer: learning rate
    config.strong.rates.adam = 5e-2
    config.strong.rates.momentum = 0.5
    return config
