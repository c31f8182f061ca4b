"""Every field of pretraining at its default: BYOL as the replication ran it on CIFAR-10.

The fields, with what each means and takes, are in `ssl_jax/builders/defaults.py`.
"""

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import add_optimizer, default_config

__all__ = ["add_optimizer", "get_config"]


def get_config() -> ConfigDict:
    return default_config()
