"""The ablation WD, RWD, PWD, LPWD (the paper's table 3), each gap split by the identities behind
it, and no decay and L2 beside them (its table 1).

python launch.py --config configs/experiments/ablation.py --workdir runs/ablation
python launch.py --config configs/experiments/ablation.py:full --workdir runs/ablation-full
"""

from ml_collections import ConfigDict

from configs.experiments.common import SCALES, base, full_scale
from ssl_jax.errors import UserError, nearest


def get_config(scale: str = "small") -> ConfigDict:
    if scale not in SCALES:
        raise UserError(f"scale: got {scale!r}, {nearest(scale, SCALES)}")
    config = base("ablation")
    config.seeds = 5  # fresh ones, after the one by which the settings are chosen
    config.epochs = 12
    config.search = ConfigDict()
    config.search.learning_rates = (1e-2, 5e-3, 2e-3)
    config.search.weight_decays = (0.5, 0.05)
    if scale == "full":
        full_scale(config)
        config.search.learning_rates = (1e-3, 5e-4, 1e-4, 5e-5, 1e-5)  # the paper's grid
        config.search.weight_decays = (0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005)
    return config
