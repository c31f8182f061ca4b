"""Figures 2 to 4 of the replication for runs that recorded their dynamics, and the linear theory
laid over each:

python launch.py --config configs/dynamics.py --config.runs=DIR1,DIR2 --workdir DIR

DIR1, DIR2 are the work directories of pretraining runs with --config.dynamics.every=STEPS, finished
or not, of one size of projection. Nothing is trained. The theory's part needs diffrax: pip install
-e '.[theory]'.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "dynamics"
    config.runs = ""  # work directories with commas between them
    return config
