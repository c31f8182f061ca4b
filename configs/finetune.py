"""Supervised training that starts from a run: `configs/finetune.py:RUN`, its work directory.

    python launch.py --config configs/finetune.py:runs/byol --workdir runs/tuned \
        --config.data.labelled_share=0.1

Data, encoder, precision and the normalisation of the images are the run's, and as many images are
held out as for its probes; they are mirrored where its views are. Batches of 50 suit few labels.
The other fields are those of configs/supervised.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import default_supervised
from ssl_jax.builders.trained_run import WITH_ENCODER, evaluation_recipe, read_trained
from ssl_jax.errors import UserError
from ssl_jax.workdir.directory import read_json


def get_config(run: str = "") -> ConfigDict:
    config = default_supervised()
    config.method, config.batch_size = "finetune", 50
    if not run:
        return config
    task = read_json(Path(run, "config.json")).get("task")
    if task not in WITH_ENCODER:
        raise UserError(
            f"--config: {run} is no run of {' or '.join(WITH_ENCODER)}; takes the work directory "
            "of one behind configs/finetune.py:"
        )
    found = read_trained(Path(run), task)
    config.weights, config.precision = run, found.precision
    for name in ("data", "encoder", "augment"):
        section = found.get(name, {})
        shared = set(config[name]) & set(section)
        config[name].update({field: section[field] for field in shared})
    if task == "pretrain":
        recipe = evaluation_recipe(found)
        config.augment.update(flip=recipe.flip, mean=recipe.mean, std=recipe.std)
        config.data.validation_size = found.probe.validation_size
    return config
