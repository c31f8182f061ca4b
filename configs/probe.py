"""Probes of a finished checkpoint: `--config.checkpoint=DIR`, the work directory of a pretraining
run.

Everything about the network and its data is read from that run; only the probes are chosen here.
"""

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import default_probe


def get_config() -> ConfigDict:
    return default_probe()
