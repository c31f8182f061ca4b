"""Höppe et al. 2022, table 2: one-layer predictors, learned or set, with and without the target
average.

python launch.py --config configs/sweeps/table2.py --workdir runs/table2
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("table2")
