"""The lectures' experiments: small networks, many at once, each of them one idea in one figure.

`training` trains all members of an experiment that share a shape in one compiled program; `conduct` leads an
experiment from its configuration to result.json, table.md and figures; the other files are the experiments.
"""

from functools import partial

from ssl_jax.experiments.lectures import adam_l2, optimizers, random_labels, ridge, signal, snapshots
from ssl_jax.experiments.lectures.conduct import conduct

# config.experiment -> function(config, directory, interrupted)
LECTURES = {
    "signal": partial(conduct, signal.EXPERIMENT),
    "adam_l2": partial(conduct, adam_l2.EXPERIMENT),
    "optimizers": partial(conduct, optimizers.EXPERIMENT),
    "random_labels": partial(conduct, random_labels.EXPERIMENT),
    "snapshots": partial(conduct, snapshots.EXPERIMENT),
    "ridge": partial(conduct, ridge.EXPERIMENT),
}
