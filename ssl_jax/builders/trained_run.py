"""Read the configuration of a pretraining run from its work directory."""

from pathlib import Path

from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.types import Config
from ssl_jax.workdir.directory import read_json

SECTIONS = (
    "data",
    "views",
    "encoder",
    "projector",
    "predictor",
    "target",
    "optimizer",
    "schedule",
    "probe",
)


def read_trained(source: Path) -> Config:
    """Return the configuration of the pretraining run in `source`; UserError if none."""
    trained = read_json(source / "config.json")
    if trained.get("task") != "pretrain":
        raise UserError(
            f"checkpoint: {source} holds a {trained.get('task')!r} task, takes a pretraining run"
        )
    if lacking := [name for name in SECTIONS if not isinstance(trained.get(name), dict)]:
        raise UserError(f"{source / 'config.json'}: damaged, lacks {', '.join(lacking)}")
    return ConfigDict(trained)
