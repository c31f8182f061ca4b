"""Tian et al. 2021, table 8 on CIFAR-10: DirectPred, every step and every five, and SGD, for three
lengths.

python launch.py --config configs/sweeps/original_table8.py --workdir runs/original_table8
[--config.scale=mini|midi|full]
"""

from configs.sweeps.cells import sweep_config


def get_config():
    return sweep_config("original_table8")
