"""What a run starts from, `config.weights`: a file, an exported folder, or another run.

The encoder must fit, array by array. The other parts are taken where the other run has the same
part: a supervised run's head into a head of the same shape, a pretraining run's projector and
predictor into those of the same fields. What is not taken is drawn from the seed, and the table of
`Weights.rows` says so.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax.builders.pretraining import build_recipe
from ssl_jax.builders.program import count_bytes
from ssl_jax.builders.trained_run import WITH_ENCODER, Trained, open_trained, step_of
from ssl_jax.errors import UserError
from ssl_jax.models import ENCODERS, fit_file
from ssl_jax.optim import Optimizer
from ssl_jax.text import printable, shown
from ssl_jax.train.state import PretrainState
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.types import Config, Params
from ssl_jax.workdir import checkpoints, provenance
from ssl_jax.workdir.directory import read_json
from ssl_jax.workdir.schema import is_number

MODEL, CONFIG = "model.safetensors", "config.json"  # of an exported folder
TAKES = (
    f"takes a file of weights, an exported folder ({MODEL} and {CONFIG}), or the work directory of "
    "a run that trains"
)
# timm's names of architectures, as a pattern, where they are not ours
ARCHITECTURES = {"swin_tiny": r"swin_tiny_patch4_window\d+_\d+"}
OWN = "ssl_jax"  # section of config.json with our own fields, and prefix of our own architectures
# the sections of a configuration that decide what a part is, beside its shapes
SECTIONS = {"projector": "projector", "predictor": "predictor"}


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation


class Source(NamedTuple):
    """What `config.weights` names, found and not yet read."""

    path: Path  # as the user gave it
    file: Path | None  # of arrays; None: a run
    run: Trained | None  # its checkpoint; None: a file
    content: dict[str, Any]  # of config.json; {} for a file by itself


class Row(NamedTuple):
    """A row of the table of what was taken."""

    part: str
    arrays: int
    size: int  # bytes
    words: str  # "taken", or why it was not


class Weights(NamedTuple):
    """What a run takes from elsewhere."""

    params: Params  # {"encoder", ...}: whole parts
    stats: Params  # the same of BatchNorm's statistics
    title: str  # where it is from, for the user
    rows: list[Row]
    notes: list[str]  # what the user should know
    parent: dict[str, Any]  # see `workdir.provenance.parent`


def find_weights(config: Config, directory: Path) -> Source | None:
    """Return what `config.weights` names; no array is read.

    Args:
        config: configuration of a run that trains.
        directory: its work directory. A run that has a checkpoint takes nothing from elsewhere.

    Returns:
        The source; None where nothing is taken.

    Raises:
        UserError: there is nothing of that kind.
    """
    step = step_of(config.weights_step, "weights_step")
    if not config.weights or checkpoints.has_any(directory / "checkpoints"):
        return None
    path = Path(config.weights)
    if path.is_file():
        return Source(path, path, None, {})
    if not path.is_dir():
        raise UserError(f"weights: got {path}, where nothing is; {TAKES}")
    if not (path / CONFIG).is_file():
        raise UserError(f"weights: got {path}, which has no {CONFIG}; {TAKES}")
    content = read_json(path / CONFIG)
    if (path / MODEL).is_file():
        _require_architecture(path, content, config)
        return Source(path, path / MODEL, None, content)
    task = content.get("task")
    if task not in WITH_ENCODER:
        raise UserError(
            f"weights: got {path}, the work directory of task {shown(task)}, and no {MODEL} in it; "
            f"takes one of task {' or '.join(WITH_ENCODER)}"
        )
    try:
        return Source(path, None, open_trained(path, step, str(task)), content)
    except UserError as error:
        line = str(error)
        raise UserError(f"weights{'_' if line.startswith('step: ') else ': '}{line}") from error


def _require_architecture(path: Path, content: dict[str, Any], config: Config) -> None:
    """Raise a UserError where an exported folder is of another encoder.

    Args:
        path: the folder.
        content: of its config.json, perhaps somebody else's.
        config: of this run.
    """
    own = content.get(OWN)
    if isinstance(own, dict) and isinstance(own.get("encoder"), dict):
        try:
            return _require_encoder(path, own["encoder"], config.encoder.to_dict())
        except UserError as error:
            raise UserError(f"weights: {error}") from error
    got, name = content.get("architecture"), config.encoder.name
    wanted = ARCHITECTURES.get(name, re.escape(name))
    names = rf"({wanted}|{OWN}_{re.escape(name)})(\..*)?"
    if not isinstance(got, str) or not re.fullmatch(names, got):
        raise UserError(
            f"weights: {path / CONFIG} has architecture {shown(got)}, which is not encoder.name "
            f"{name}"
        )


def read_weights(source: Source, config: Config, shapes: Any) -> Weights:
    """Read what a run takes from elsewhere, and check that it fits.

    Args:
        source: from `find_weights`.
        config: configuration of the run, settled.
        shapes: its state at step 0, or the shapes of it.

    Returns:
        The parts that are taken.

    Raises:
        UserError: names the first array that does not fit, with both shapes.
    """
    try:
        if source.file is not None:
            return _from_file(source, source.file, config, shapes)
        assert source.run is not None
        return _from_run(source.path, source.run, config, shapes)
    except UserError as error:
        raise UserError(f"weights: {error}") from error


def _from_file(source: Source, file: Path, config: Config, shapes: Any) -> Weights:
    fitted = fit_file(file, shapes.params, shapes.stats, config.encoder.name)
    digest = provenance.sha256_of(file)
    rows = [
        _row(
            shapes, part, "taken" if part in fitted.params else _why_fresh(part, fitted.about_head)
        )
        for part in shapes.params
    ]
    left = [name for name in fitted.left if name not in shapes.params]
    if left:
        names = ", ".join(map(printable, left[:3])) + (", ..." if len(left) > 3 else "")
        rows.append(Row("left out", len(left), 0, f"{names}: of no part of this run"))
    title, parent = (
        f"{source.path} (sha256 {digest[:12]})",
        provenance.parent(source.path, None, digest),
    )
    notes = _notes(_stated_normalisation(source.content), config)
    return Weights(fitted.params, fitted.stats, title, rows, notes, parent)


def _why_fresh(part: str, about_head: str) -> str:
    """Return why a part is not taken from a file."""
    return f"fresh{about_head}" if part == "head" else "fresh, not in the file"


def _row(shapes: Any, part: str, words: str) -> Row:
    arrays = shapes.params[part], shapes.stats.get(part, {})
    return Row(part, len(jax.tree.leaves(arrays)), count_bytes(arrays), words)


def _from_run(path: Path, run: Trained, config: Config, shapes: Any) -> Weights:
    _require_encoder(path, run.config.encoder.to_dict(), config.encoder.to_dict())
    saved = checkpoints.shapes_in(run.folder, run.step)
    like = {part: _like(shapes, part) for part in shapes.params}
    checkpoints.check_shapes(run.folder, run.step, like["encoder"])
    why = {
        part: "" if part == "encoder" else _misfit(part, like[part], saved, run.config, config)
        for part in like
    }
    rows = [_row(shapes, part, f"fresh, {why[part]}" if why[part] else "taken") for part in like]
    known = {name.split("/")[1] for name in saved if name.startswith("params/")}
    for part in sorted(known - set(like)):
        found = [math.prod(s) for name, s in saved.items() if name.startswith(f"params/{part}/")]
        rows.append(Row(part, len(found), 4 * sum(found), "left out, this run has none"))
    wanted: dict[str, Any] = {"params": {}, "stats": {}}
    for part in (part for part in like if not why[part]):
        wanted = {name: wanted[name] | like[part].get(name, {}) for name in wanted}
    wanted = {name: tree for name, tree in wanted.items() if tree}
    wanted = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted)
    state = checkpoints.restore_parts(run.folder, run.step, wanted)
    digest = checkpoints.digest_of(run.folder, run.step)
    parent = provenance.parent(path, run.step, digest)
    title = f"{path} at step {run.step}" + (f" (sha256 {digest[:12]})" if digest else "")
    notes = _notes(_normalisation(run.config), config)
    return Weights(state["params"], state.get("stats", {}), title, rows, notes, parent)


def _like(shapes: Any, part: str) -> dict[str, Any]:
    """Return the part of a state: {"params": {part: ...}}, and "stats" where it has some."""
    like = {"params": {part: shapes.params[part]}}
    return like | ({"stats": {part: shapes.stats[part]}} if part in shapes.stats else {})


def _require_encoder(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise a UserError with the fields in which the encoder of another run differs.

    Args:
        path: of the other run, or of its exported folder.
        theirs: the section `encoder` of its configuration.
        ours: that of this run.
    """
    got, wanted = _encoder_of(theirs), _encoder_of(ours)
    if differing := [name for name in wanted if got.get(name) != wanted[name]]:
        listed = ", ".join(f"encoder.{name} {shown(got.get(name))}" for name in differing)
        own = ", ".join(repr(wanted[name]) for name in differing)
        raise UserError(f"{path} has {listed}, this run {own}; takes a run of the same encoder")


def _encoder_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that decide what an encoder computes, with its own values for "auto"."""
    name = fields.get("name")
    known = ENCODERS.get(name) if isinstance(name, str) else None
    if known is not None:
        fields = {n: v for n, v in fields.items() if n in ("name", "width", "norm", *known.fields)}
        fields["width"] = fields.get("width") or known.width
        fields["norm"] = known.norm if fields.get("norm") == "auto" else fields.get("norm")
    if fields.get("activation") == "auto":
        fields["activation"] = "relu"
    fields.pop("dropout", None)  # of training alone
    return fields


def _misfit(
    part: str, like: dict[str, Any], saved: dict[str, tuple[int, ...]], theirs: Config, ours: Config
) -> str:
    """Return why a part of another run is not taken; "" where it is.

    Args:
        part: such as "projector".
        like: the part as this run has it, from `_like`.
        saved: shapes of the other run's arrays by name.
        theirs: configuration of the other run.
        ours: of this one.

    Returns:
        The words.
    """
    if not any(name.startswith(f"params/{part}/") for name in saved):
        return "the other run has none"
    if section := SECTIONS.get(part):
        for name, value in ours[section].items():
            if name in ("kind", "output_bias", "symmetric") and theirs[section][name] != value:
                return f"{section}.{name} {theirs[section][name]!r} there, {value!r} here"
    for path, leaf in jax.tree.leaves_with_path(like):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if saved.get(name) != tuple(leaf.shape):
            return f"{name} has {saved.get(name)} there, {tuple(leaf.shape)} here"
    return ""


def _notes(theirs: Normalisation | None, config: Config) -> list[str]:
    """Return a line where the encoder was trained on images of another normalisation."""
    ours = _normalisation(config)
    if theirs is None or ours is None or np.allclose(_three(theirs), _three(ours), atol=5e-4):
        return []
    section = "augment" if config.task == "supervised" else "views"
    words = (
        f"--config.{section}.{name}={','.join(f'{x:g}' for x in values)}"
        for name, values in zip(("mean", "std"), theirs, strict=True)
    )
    return [f"its images were normalised otherwise; as there: {' '.join(words)}"]


def _three(normalisation: Normalisation) -> np.ndarray:
    """Return mean and standard deviation of red, green and blue, (2, 3)."""
    return np.stack([np.broadcast_to(np.asarray(values), (3,)) for values in normalisation])


def _normalisation(config: Config) -> Normalisation | None:
    """Return mean and standard deviation of a run's images; None where they are not yet known."""
    own = config.augment if config.task == "supervised" else build_recipe(config)
    return None if own.mean is None or own.std is None else (tuple(own.mean), tuple(own.std))


def _stated_normalisation(content: dict[str, Any]) -> Normalisation | None:
    """Return what an exported folder's config.json says of it; None where it says nothing."""
    stated = content.get("pretrained_cfg")
    values = [stated.get(name) for name in ("mean", "std")] if isinstance(stated, dict) else []
    found = [tuple(v) for v in values if isinstance(v, list) and all(map(is_number, v))]
    if len(found) < 2 or any(len(v) not in (1, 3) for v in found):
        return None
    return found[0], found[1]


def begin_with(
    weights: Weights | None, state: PretrainState | SupervisedState, optimizer: Optimizer
) -> Any:
    """Return the state at step 0 with what is taken from elsewhere in its place.

    The optimizer starts anew, and so do the step and the predictor's memory. A target network
    starts as a copy of the online one.

    Args:
        weights: from `read_weights`; None: nothing is.
        state: as drawn from the seed, on the host.
        optimizer: of the run.

    Returns:
        The state, on the host.
    """
    if weights is None:
        return state
    params, stats = state.params | weights.params, state.stats | weights.stats
    parts: dict[str, Any] = {"params": params, "stats": stats, "opt_state": optimizer.init(params)}
    if isinstance(state, PretrainState) and state.target:
        parts["target"] = {part: params[part] for part in state.target}
    return jax.tree.map(np.array, jax.device_get(state._replace(**parts)))
