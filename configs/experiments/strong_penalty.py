"""Strong penalty: loss and accuracy where learning rate and decay are both large (the paper's
figure 1).

    python launch.py --config configs/experiments/strong_penalty.py --workdir runs/strong_penalty
    python launch.py --config configs/experiments/strong_penalty.py:full \\
        --workdir runs/strong_penalty-full

Ten times the base rates of robustness.py, and the largest decay, as in the paper; there Adam alone,
at 1e-3.
"""

from ml_collections import ConfigDict

from configs.experiments.common import SCALES, base, full_scale
from ssl_jax.errors import UserError, nearest


def get_config(scale: str = "small") -> ConfigDict:
    if scale not in SCALES:
        raise UserError(f"scale: got {scale!r}, {nearest(scale, SCALES)}")
    config = base("strong_penalty")
    config.seeds = 3
    config.arms = ("WD", "RWD", "PWD", "LPWD")
    config.strong = ConfigDict()
    config.strong.weight_decay = 0.5
    config.strong.rates = ConfigDict()  # optimizer: learning rate
    if scale == "full":
        full_scale(config)
        config.strong.rates.adam = 1e-3  # the paper's
        return config
    config.strong.rates.adam = 5e-2
    config.strong.rates.momentum = 0.5
    return config
