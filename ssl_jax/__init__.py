"""ssl_jax: self-supervised learning without contrastive pairs, its dynamics, and weight decay.

    run = ssl_jax.train("quickstart", "runs/quickstart", epochs=5)  # as the command line does
    run = ssl_jax.open_run("runs/quickstart")  # a work directory, finished or not
    features = run.encoder()(images)
    ssl_jax.sklearn.Encoder("runs/quickstart")  # a transformer for scikit-learn

Importing the package imports nothing else.
"""

import importlib
import sys
from types import ModuleType

TYPE_CHECKING = False  # a type checker takes it for true; `typing` takes longer to import than this
if TYPE_CHECKING:
    from typing import Any

    from ssl_jax import sklearn as sklearn
    from ssl_jax.launch import train as train
    from ssl_jax.runs import open_run as open_run
else:
    from ssl_jax import train

__all__ = ["open_run", "sklearn", "train"]


class _Train(ModuleType):
    """The folder `ssl_jax.train`, which is the function `ssl_jax.train` as well."""

    def __call__(self, config_path: "Any", workdir: "Any", **fields: "Any") -> "Any":
        """Run a task as the command line does; see `ssl_jax.launch.train`."""
        return importlib.import_module("ssl_jax.launch").train(config_path, workdir, **fields)


sys.modules["ssl_jax.train"].__class__ = _Train


def __getattr__(name: str) -> "Any":
    if name == "open_run":
        return importlib.import_module("ssl_jax.runs").open_run
    if name == "sklearn":
        return importlib.import_module("ssl_jax.sklearn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
