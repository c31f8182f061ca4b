"""The encoder of a run as files for other programs: `--config.checkpoint=DIR`, its work directory.

`--workdir` names the folder for them: weights for timm and PyTorch, a program for jax, and a model
card. `docs/export.md` says how each is read.
"""

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import default_export


def get_config() -> ConfigDict:
    return default_export()
