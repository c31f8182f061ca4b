"""DirectCopy (Wang et al. 2021) with the constants of Höppe et al. 2022, with and without the
target average.

python launch.py --config configs/sweeps/directcopy.py --workdir runs/directcopy
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("directcopy")
