"""Höppe et al. 2022, table 1: two-layer predictors, symmetric or not, with and without the target
average.

python launch.py --config configs/sweeps/table1.py --workdir runs/table1
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("table1")
