"""Probes of a finished checkpoint: `--config.checkpoint=DIR`, the work directory of a pretraining
run.

Everything about the network and its data is read from that run; only the probes are chosen here.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "probe"
    config.checkpoint = ""  # the work directory of a pretraining run
    config.step = -1  # which of its checkpoints; -1: the newest
    config.data_dir = ""  # where the run's data is now; "": where the run had it
    config.probe = defaults.get_config().probe
    config.probe.protocol = "both"
    return config
