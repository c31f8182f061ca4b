"""Your own images, with or without labels: `--config.data.data_dir=DIR` is all that is needed.

BYOL with the views that its paper has for photographs. What is left to the data (the sides at which
images are stored and seen, the batch, the stem, the blur's kernel, mean and standard deviation, the
sizes of validation and kNN) is chosen at the start and printed, one choice a line;
`ssl_jax/builders/choices.py` has the rules. A field that is set on the command line is not chosen.

Rate, decay and target rate are the replication's for a batch of 128, see
`ssl_jax/builders/defaults.py`, with a cosine in place of a constant rate. They are not tuned to any
images: without labels there is nothing to tune on. 100 epochs suit some ten thousand images; take
more for fewer.
"""

from configs import defaults
from configs.methods import apply_method


def get_config(method: str = "byol"):
    config = defaults.get_config()
    config.data.name = "folder"
    config.views.recipe = "photo"
    config.views.size = -1
    config.batch_size = 0
    config.encoder.stem = "auto"
    config.probe.validation_size = 0
    config.probe.knn_k = 0
    config.schedule.name = "cosine"
    return apply_method(config, method)
