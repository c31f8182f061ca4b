"""The lectures' experiments: small networks, many at once, each of them one idea in one figure.

`training` trains all members of an experiment that share a shape in one compiled program; `conduct.run` leads an
experiment from its configuration to result.json, table.md and figures; the other files are the experiments.
"""

from functools import partial

from ssl_jax.experiments.lectures import adam_l2, conduct, optimizers, random_labels, ridge, signal, snapshots

# config.experiment -> function(config, directory, interrupted)
LECTURES = {
    "signal": partial(conduct.run, signal.EXPERIMENT),
    "adam_l2": partial(conduct.run, adam_l2.EXPERIMENT),
    "optimizers": partial(conduct.run, optimizers.EXPERIMENT),
    "random_labels": partial(conduct.run, random_labels.EXPERIMENT),
    "snapshots": partial(conduct.run, snapshots.EXPERIMENT),
    "ridge": partial(conduct.run, ridge.EXPERIMENT),
}
