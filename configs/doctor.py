"""Diagnose a pretraining run, finished or not, and advise which field to change.

`--config.run=DIR` is the work directory of that run.

    python launch.py --config configs/doctor.py --config.run=DIR --workdir OUT

It trains nothing, reads no data, and takes a second or two. Every run also diagnoses itself while
it goes on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "doctor"
    config.run = ""  # the work directory of a pretraining run
    return config
