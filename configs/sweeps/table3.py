"""Höppe et al. 2022, table 3: a fast predictor, decayed alone or not at all.

python launch.py --config configs/sweeps/table3.py --workdir runs/table3
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("table3")
