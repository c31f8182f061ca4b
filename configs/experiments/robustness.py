"""Learning rate x weight decay: WD against LPWD, and the opposing penalties of WD (the paper's
table 2, figures 2, 4).

    python launch.py --config configs/experiments/robustness.py --workdir runs/robustness
    python launch.py --config configs/experiments/robustness.py:full --workdir runs/robustness-full

The paper's ratios around a base learning rate, and its decays. Its base for Adam, 1e-4, is for a
network that was trained before, and 9 800 steps; 310 steps from scratch want another. By held-out
images, one seed, decay 0.01:

    Adam       2e-4 .419   5e-4 .460   1e-3 .500   2e-3 .500   5e-3 .510 <-   1e-2 .507   2e-2 .500
    momentum   0.02 .459   0.05 .468 <-   0.1 .465   0.2 .422   0.5 .407   1.0 .399

The strongest cell then decays by learning rate * decay * steps = 0.05 * 0.5 * 310 = 7.8 in all (the
paper's: 4.9), the one at both base values, 5e-3 and 0.01, by 0.016 (0.0098).
"""

from ml_collections import ConfigDict

from configs.experiments.common import SCALES, base, full_scale
from ssl_jax.errors import UserError, nearest


def get_config(scale: str = "small") -> ConfigDict:
    if scale not in SCALES:
        raise UserError(f"scale: got {scale!r}, {nearest(scale, SCALES)}")
    config = base("robustness")
    config.grid = ConfigDict()
    config.grid.learning_rate = 5e-3
    config.grid.factors = (10.0, 5.0, 1.0, 0.5, 0.1)  # of that learning rate
    config.grid.weight_decays = (0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005)
    if scale == "full":
        full_scale(config)
        config.grid.learning_rate = 1e-4  # the paper's
    return config
