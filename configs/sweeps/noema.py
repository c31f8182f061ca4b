"""What frees DirectPred without a target average: one field changed at a time, then two.

python launch.py --config configs/sweeps/noema.py --workdir runs/noema
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("noema")
