"""The methods around DirectPred, beside it: docs/methods.md has the table.

python launch.py --config configs/sweeps/family.py --workdir runs/family
--config.scale=digits|mini|midi|full [--config.cells=isoloss,byol_gn]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("family")
