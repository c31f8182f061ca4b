"""Read a run from its work directory, whoever made it and when: configuration and encoder.

The table of fields (`builders.defaults`) is the schema. A field that the file lacks has its
default: the run began before there was that field. What the table does not know, a value of another
type and a value that no run takes are one `UserError` with the file, the field, what it has and
what it takes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from ssl_jax.augment.views import Recipe, evaluation_view
from ssl_jax.builders.checks import check_counts
from ssl_jax.builders.data import describe_dataset
from ssl_jax.builders.defaults import TABLES
from ssl_jax.builders.network import build_encoder, build_network
from ssl_jax.builders.optimizer import build_optimizer, build_rules
from ssl_jax.builders.pretraining import GROUPS, build_predictor, build_recipe, build_tau
from ssl_jax.errors import UserError, nearest
from ssl_jax.probes.label_free import RANKINGS
from ssl_jax.runtime.terminal import say
from ssl_jax.text import SHOWN, printable, shortened, shown
from ssl_jax.types import Config
from ssl_jax.workdir import checkpoints, provenance
from ssl_jax.workdir.directory import LISTED, read_json
from ssl_jax.workdir.schema import is_number, is_whole

TAKES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list of numbers",
}
# Steps of an epoch that the parts are built with to check them, where no data set says how many:
# enough for schedules that count parts of an epoch, and few enough for runs of many epochs.
STEPS_PER_EPOCH, MOST_STEPS = 1000, 2**30
WITH_ENCODER = ("pretrain", "supervised")  # the tasks whose runs have an encoder
IMAGE = "image"  # note of a checkpoint: height, width and channels of the run's images


class Trained(NamedTuple):
    """A checkpoint of a run."""

    source: Path  # the run's work directory
    config: Config  # the run's, with all its fields
    step: int

    @property
    def folder(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.source / "checkpoints"


def open_trained(source: Path, step: int | Literal["best"] = -1, task: str = "pretrain") -> Trained:
    """Return a checkpoint of the run in a work directory; no array is read.

    Args:
        source: the work directory.
        step: the checkpoint; -1: the newest; "best": the one that the run calls the best.
        task: task of the run, of `WITH_ENCODER`.

    Returns:
        The checkpoint.

    Raises:
        UserError: `source` holds no run of the task, or not this checkpoint.
    """
    config = read_trained(source, task)
    folder = source / "checkpoints"
    steps = checkpoints.steps_in(folder)
    if step == "best":
        return Trained(source, config, _best_step(config, folder))
    found = steps[-1] if step == -1 else step
    if found not in steps:
        raise UserError(
            f"step: got {step}, {source} has {', '.join(map(str, steps))}; takes one of them, "
            "newest or best"
        )
    return Trained(source, config, found)


def parents_of(trained: Trained) -> list[dict[str, Any]]:
    """Return the provenance of what reads a checkpoint: the checkpoint."""
    digest = checkpoints.digest_of(trained.folder, trained.step)
    return [provenance.parent(trained.source, trained.step, digest)]


def checkpoint_of(config: Config) -> Path:
    """Return the work directory that a task's field `checkpoint` names; UserError for none."""
    if not config.checkpoint:
        raise UserError(
            "checkpoint: got '', takes the work directory of a run (--config.checkpoint=DIR)"
        )
    return Path(config.checkpoint)


def step_of(text: str, field: str = "step") -> int | Literal["best"]:
    """Return the checkpoint that a user named, as `open_trained` takes it.

    UserError for a text that is neither "newest", "best" nor a whole number.
    """
    if text in ("newest", "best"):
        return -1 if text == "newest" else "best"
    if not re.fullmatch(r"-1|[0-9]{1,18}", text):
        raise UserError(f"{field}: got {shown(text)}, takes newest, best or the number of a step")
    return int(text)


def _best_step(config: Config, folder: Path) -> int:
    """Return the best step of a run by validation accuracy, or by what `probe.best` names.

    "auto" was kNN for a set with labels, whose checkpoints have its accuracy, else RankMe.
    """
    if config.task == "supervised":
        return checkpoints.best_step(folder, "validation_accuracy")
    if config.probe.best == "auto":
        knn, rankme = RANKINGS["knn"], RANKINGS["rankme"]
        try:
            return checkpoints.best_step(folder, knn.column)
        except checkpoints.NoMetricError as error:
            try:
                return checkpoints.best_step(folder, rankme.column)
            except checkpoints.NoMetricError:
                raise error from None
    ranking = RANKINGS[config.probe.best]
    return checkpoints.best_step(folder, ranking.column, ranking.score)


def image_of(trained: Trained) -> tuple[int, int, int]:
    """Return height and width in pixels, and channels, of the images that a run was trained on.

    The checkpoint notes them. One of an earlier version does not: its data set tells.

    Raises:
        UserError: neither does.
    """
    noted = checkpoints.read_notes(trained.folder, trained.step).get(IMAGE)
    if noted is None:
        try:
            return describe_dataset(trained.config).image
        except UserError as error:
            raise UserError(
                f"{trained.source}: does not say how large its images are, and its data are not "
                f"there to tell ({error}); put them there"
            ) from error
    height, width, channels = noted
    return height, width, channels


def evaluation_recipe(config: Config) -> Recipe:
    """Return the recipe of a run, whose size, mean and std its probes and its test see."""
    if config.task == "supervised":
        return Recipe(mean=config.augment.mean, std=config.augment.std)
    return build_recipe(config)


def load_encoder(trained: Trained, image: tuple[int, int, int]) -> Partial:
    """Return apply(images (B, H, W, C) uint8) -> features (B, F), as the run's probes have them.

    Args:
        trained: the checkpoint.
        image: height, width and channels of an image.

    Returns:
        The function, whose weights are on the device.

    Raises:
        UserError: the checkpoint does not fit the run's configuration, or cannot be read.
    """
    with found_in(trained.source / "config.json"):
        encoder = build_encoder(trained.config, None)
        view = evaluation_view(evaluation_recipe(trained.config))
    height, width, channels = image

    def initialise() -> Any:
        batch = view(jnp.zeros((2, height, width, channels), jnp.uint8))
        return encoder.init(jax.random.key(0), batch, train=False)

    shapes: Any = jax.eval_shape(initialise)
    like = {"params": {"encoder": shapes["params"]}}
    if "batch_stats" in shapes:
        like["stats"] = {"encoder": shapes["batch_stats"]}
    checkpoints.check_shapes(trained.folder, trained.step, like)
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    state = checkpoints.restore_parts(trained.folder, trained.step, like)
    variables = {"params": state["params"]["encoder"]}
    if "stats" in state:
        variables["batch_stats"] = state["stats"]["encoder"]

    def apply(variables: Any, batch: jax.Array) -> jax.Array:
        return jnp.asarray(encoder.apply(variables, view(batch), train=False))

    return jax.device_put(Partial(apply, variables))


def read_trained(source: Path, task: str = "pretrain") -> Config:
    """Return the configuration of the run in the work directory `source`, with all its fields.

    The values of a pretraining run are checked as its start checks them, without its data; those of
    other tasks by their types alone.

    Raises:
        UserError: `source` holds no run of the task, or its config.json is damaged.
    """
    path = source / "config.json"
    content = read_json(path)
    held = content.get("task")
    if held != task:
        raise UserError(
            f"{path}: task: got {shown(held) if 'task' in content else 'none'}, takes {task!r}; "
            "expected the work directory of a run of that task"
        )
    config = TABLES[task]()
    lacking = lacks(content, config)
    with found_in(path):
        fill(config, content)
        if task == "pretrain":
            check_pretrained(config)
    if lacking:
        more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
        say(f"{path}: lacks {', '.join(lacking[:LISTED])}{more}, read as the defaults")
    return config


def lacks(content: dict[str, Any], config: Config, section: str = "") -> list[str]:
    """Return the full names of the fields and whole sections that a file lacks.

    Args:
        content: of the file, or of its section.
        config: the table of fields, or its section.
        section: the section's full name with a dot behind it; "" for the table.
    """
    found = []
    for name, inner in config.items():
        if name not in content:
            found.append(f"{section}{name}")
        elif isinstance(inner, ConfigDict) and isinstance(content[name], dict):
            found += lacks(content[name], inner, f"{section}{name}.")
    return found


@contextmanager
def found_in(path: Path) -> Iterator[None]:
    """Put the file that a value is from before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def fill(config: Config, content: dict[str, Any], section: str = "") -> None:
    """Set the fields of `config` to those of `content`, and leave the others as they are.

    Args:
        config: a table of fields, or a section of it.
        content: what a file has in its place.
        section: the section's full name with a dot behind it; "" for the table.

    Raises:
        UserError: the table lacks a field of `content`, or the field takes another type.
    """
    for name, value in content.items():
        field = f"{section}{name}"
        if name not in config:
            known = [f"{section}{other}" for other in config]
            seen = shortened(printable(field), SHOWN)
            raise UserError(f"{seen}: no such field, {nearest(field, known)}")
        if isinstance(config[name], ConfigDict):
            if not isinstance(value, dict):
                fields = ", ".join(config[name])
                raise UserError(f"{field}: got {shown(value)}, takes a section with {fields}")
            fill(config[name], value, f"{field}.")
        elif value is not None or config[name] is not None:
            config[name] = _typed(field, value, config.get_type(name), config[name] is None)


def _typed(field: str, value: Any, kind: type, optional: bool) -> Any:
    """Return the value as the field takes it; UserError for one of another type.

    Args:
        field: full name, for the message.
        value: as JSON has it.
        kind: the type that the field takes.
        optional: whether it may be unset, for the message.
    """
    if kind is float and is_number(value):
        return float(value)
    if kind is int and is_whole(value):
        return value
    if kind is tuple and isinstance(value, list) and all(map(is_number, value)):
        return tuple(value)
    if kind in (bool, str) and type(value) is kind:
        return value
    or_unset = " or null" if optional else ""
    raise UserError(f"{field}: got {shown(value)}, takes {TAKES[kind]}{or_unset}")


def check_pretrained(config: Config) -> None:
    """Raise a UserError for the first field of a pretraining run that no run has.

    No data is read: sizes that only the data set limits pass.
    """
    check_counts(config)
    each = max(1, min(STEPS_PER_EPOCH, MOST_STEPS // config.epochs))
    build_network(config, None)
    build_predictor(config, None)
    build_recipe(config)
    build_tau(config, config.epochs * each)
    # an order of no modules: that of the network takes seconds to trace, and decides no value
    build_optimizer(config, build_rules(config, GROUPS, config.epochs * each, each), ())
