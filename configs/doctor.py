"""What ails a pretraining run, and what to turn: `--config.run=DIR`, the work directory of that
run, finished or not.

    python launch.py --config configs/doctor.py --config.run=DIR --workdir OUT

Nothing is trained and no data read: a second or two. Every run is also judged so by itself, while
it goes on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "doctor"
    config.run = ""  # the work directory of a pretraining run
    return config
