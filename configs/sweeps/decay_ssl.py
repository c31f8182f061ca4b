"""Where in the step weight decay acts: BYOL and SimSiam, each with four kinds; nothing was
published of it.

python launch.py --config configs/sweeps/decay_ssl.py --workdir runs/decay_ssl
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("decay_ssl")
