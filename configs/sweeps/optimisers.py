"""BYOL under one optimizer after another; nothing was published of it.

python launch.py --config configs/sweeps/optimisers.py --workdir runs/optimisers
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("optimisers")
