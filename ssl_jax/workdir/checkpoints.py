"""Orbax checkpoints of a run.

The latest two and the best one are kept. They are written in the background, each whole or absent.
Arrays are saved as NumPy, so that they restore on any number of devices. Beside the state lies its
manifest: the step, a digest of every array, notes of whoever saves it, and a digest of all that.
Orbax notices no flipped bit and no renamed folder; the manifest does.
"""

import hashlib
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr
from orbax.checkpoint import checkpoint_managers as policies

from ssl_jax import files
from ssl_jax.digests import array_digest
from ssl_jax.errors import UserError
from ssl_jax.types import PyTree

STATE = "state"
MANIFEST = "manifest"
METRICS = "metrics"
BEFORE = "delete this folder to go on from the one before it"
_UNRANKED = -math.inf


def open_manager(
    directory: Path, best: str, score: Callable[[float], float] = lambda value: value
) -> ocp.CheckpointManager:
    """Return a manager that keeps the latest two steps and the best one.

    Orbax's own `best_fn` would delete the latest step where it is not among the best, and a resumed
    run would go backwards; the union of two policies does not.

    Args:
        directory: the checkpoint folder; it is made.
        best: the metric that ranks steps. Steps without it come last.
        score: of its value; the largest score is the best.

    Returns:
        The manager.

    Raises:
        UserError: the folder holds what is no checkpoint.
    """
    # Orbax logs a traceback of every error that it raises as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    _quiet_event_loop()

    def rank(metrics: dict[str, float]) -> float:
        return score(metrics[best]) if best in metrics else _UNRANKED

    files.make_folder(directory)
    for path in directory.iterdir():
        if path.name.isdigit() and not path.is_dir():  # Orbax would wait for a pipe
            raise UserError(f"{path}: is no folder of a checkpoint; delete it")
    best_one = policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best_one]),
        # without it the metrics are not written, and the best one is forgotten at the next start
        best_fn=rank,
        cleanup_tmp_directories=True,
    )
    try:
        return ocp.CheckpointManager(directory.resolve(), options=options)
    except ValueError as error:
        raise UserError(
            f"{directory}: the metrics of a checkpoint cannot be read ({error}); delete its folder"
        ) from error


def save(
    manager: ocp.CheckpointManager,
    state: PyTree,
    step: int,
    metrics: dict[str, float],
    notes: dict[str, Any] | None = None,
) -> None:
    """Start writing `state` as `step`; a step that is already there stays as it is.

    Args:
        manager: from `open_manager`.
        state: a tree of arrays.
        step: steps taken so far.
        metrics: the finite metrics of this step; that called `best` in `open_manager` ranks it.
        notes: JSON values, which `read_notes` returns.
    """
    if step in manager.all_steps():
        return
    state = jax.device_get(state)
    named = _named(state)
    manifest = _manifest(step, {name: array_digest(array) for name, array in named}, notes or {})
    items = {STATE: ocp.args.PyTreeSave(state), MANIFEST: ocp.args.JsonSave(manifest)}
    needed = sum(array.nbytes for _, array in named)
    with _writing(manager, needed):
        manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)


def complete(directory: Path, step: int, metrics: dict[str, float], notes: dict[str, Any]) -> None:
    """Replace metrics and notes of a checkpoint that was written before they were known.

    A manager that is open takes them over with `reload`.

    Args:
        directory: the checkpoint folder, with one folder for each step.
        step: the checkpoint.
        metrics: as `save` takes them.
        notes: as `save` takes them. They are replaced last, so what they say is true of the rest.
    """
    folder = directory.resolve() / str(step)
    manifest = _manifest(step, _read_manifest(folder)["arrays"], notes)
    files.write_whole(folder / METRICS / METRICS, json.dumps(metrics))
    files.write_whole(folder / MANIFEST / "metadata", json.dumps(manifest))


def _manifest(step: int, arrays: dict[str, str], notes: dict[str, Any]) -> dict[str, Any]:
    content = {"step": step, "arrays": arrays, "notes": notes}
    return content | {"digest": _digest_of_json(content)}


def _digest_of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until what `save` began is written.

    Raises:
        UserError: it cannot be written; the checkpoints before it are whole.
    """
    with _writing(manager):
        manager.wait_until_finished()


@contextmanager
def _writing(manager: ocp.CheckpointManager, needed: int | None = None) -> Iterator[None]:
    """Turn a failure to write, of this checkpoint or of the one under way, into one line."""
    directory = Path(str(manager.directory))
    with files.writing(directory, needed):
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # TensorStore hides the system's error in text of its own
            found = re.search(r": ([^:]+) \[os_error_code", str(error))
            why = found[1] if found else (str(error).splitlines() or [""])[0][:160]
            raise UserError(
                f"{directory}: a checkpoint cannot be written ({why}); the ones before it are whole"
            ) from error


def _quiet_event_loop() -> None:
    """Print nothing of reads and writes that report to an event loop that Orbax has closed.

    After a failure those that were under way still do, whenever they end. What nobody waits for any
    more is logged with a traceback when it is collected.
    """
    logging.getLogger("asyncio").addFilter(_is_waited_for)
    hook = sys.unraisablehook

    def report(late: Any) -> None:
        if "Event loop is closed" not in str(late.exc_value):
            hook(late)

    if getattr(hook, "__qualname__", "") != report.__qualname__:
        sys.unraisablehook = report


def _is_waited_for(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _named(state: PyTree) -> list[tuple[str, np.ndarray]]:
    return [
        (keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in jax.tree.leaves_with_path(state)
    ]


def restore(manager: ocp.CheckpointManager, like: PyTree) -> PyTree:
    """Return the newest checkpoint as NumPy arrays of the structure and shapes of `like`.

    UserError where there is none, or it does not fit.
    """
    return restore_parts(Path(str(manager.directory)), latest_step(manager), like)


def restore_parts(directory: Path, step: int, like: PyTree) -> PyTree:
    """Return the parts of a checkpoint's state that `like` names.

    Args:
        directory: the checkpoint folder, with one folder for each step.
        step: the checkpoint to read.
        like: arrays of the structure, shapes and types that are expected, e.g.
            {"params": ..., "stats": ...}.

    Returns:
        NumPy arrays of the structure of `like`.

    Raises:
        UserError: the checkpoint cannot be read, lacks an array, or has one of another shape.
    """
    folder = directory.resolve() / str(step)
    target = jax.tree.map(np.asarray, jax.device_get(like))
    saved = _read_manifest(folder).get("arrays", {})
    state = _read(folder, target)
    # Orbax notices neither: it fills a gap with the target itself, and gives a NumPy target any
    # shape.
    for (path, want), got in zip(
        jax.tree.leaves_with_path(target), jax.tree.leaves(state), strict=True
    ):
        name = keystr(path, simple=True, separator="/")
        if got is want:
            raise UserError(f"{folder}: has no {name}, which this configuration needs")
        _require_shape(folder, name, np.shape(got), np.shape(want))
        if saved and array_digest(np.asarray(got)) != saved.get(name):
            raise UserError(f"{folder}: {name} is not what was saved, its bits changed; {BEFORE}")
    return state


def check_shapes(directory: Path, step: int, like: PyTree) -> None:
    """Refuse a checkpoint that `restore_parts` would refuse for its shapes, before it is read.

    Nothing is allocated, whatever numbers a damaged configuration has.

    Args:
        directory: the checkpoint folder, with one folder for each step.
        step: the checkpoint.
        like: what is expected: a tree of arrays, or of what has a shape as they do.

    Raises:
        UserError: the checkpoint cannot be read, lacks an array, or has one of another shape.
    """
    folder = directory.resolve() / str(step)
    saved = shapes_in(directory, step)
    for path, want in jax.tree.leaves_with_path(like):
        name = keystr(path, simple=True, separator="/")
        if name not in saved:
            raise UserError(f"{folder}: has no {name}, which this configuration needs")
        _require_shape(folder, name, saved[name], want.shape)


def shapes_in(directory: Path, step: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a checkpoint, by its path such as params/head/bias.

    UserError where it cannot be read.
    """
    return {
        keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(_metadata(directory.resolve() / str(step)))
        if hasattr(leaf, "shape")
    }


def _require_shape(folder: Path, name: str, got: tuple[int, ...], want: tuple[int, ...]) -> None:
    """Raise a UserError where the array `name` of a checkpoint has another shape."""
    if got != want:
        raise UserError(f"{folder}: {name} has shape {got}, this configuration needs {want}")


def read_notes(directory: Path, step: int) -> dict[str, Any]:
    """Return the notes of a checkpoint; {} for one of an earlier version, which has none."""
    return _read_manifest(directory.resolve() / str(step)).get("notes", {})


def digest_of(directory: Path, step: int) -> str | None:
    """Return the SHA-256 of a checkpoint's manifest, which has a digest of every array.

    None for one of an earlier version, which has none.
    """
    return _read_manifest(directory.resolve() / str(step)).get("digest")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint; {} for one of an earlier version, which has none."""
    path = folder / MANIFEST / "metadata"
    if not path.parent.exists():
        return {}
    try:
        manifest = json.loads(files.read_bytes(path, "the manifest of a checkpoint"))
        own = manifest.pop("digest")
        step, arrays, notes = manifest["step"], dict(manifest["arrays"]), dict(manifest["notes"])
        if own != _digest_of_json(manifest):
            raise ValueError("its bits changed")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {BEFORE}") from error
    if str(step) != folder.name:
        raise UserError(f"{folder}: is the checkpoint of step {step} under another name; {BEFORE}")
    return {"arrays": arrays, "notes": notes, "digest": own}


def latest_step(manager: ocp.CheckpointManager) -> int:
    """Return the newest complete step; UserError where there is none."""
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{manager.directory}: no checkpoint found, expected folders named by step")
    return step


def has_any(directory: Path) -> bool:
    """Return whether a checkpoint folder has a complete step; it need not exist."""
    return any(p.name.isdigit() and p.is_dir() for p in directory.glob("*"))


def steps_in(directory: Path) -> list[int]:
    """Return the complete steps in a checkpoint folder, ascending; UserError for none."""
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit() and p.is_dir())
    if not steps:
        raise UserError(
            f"{directory}: no checkpoint found; expected a work directory of a pretraining run"
        )
    return steps


class NoMetricError(UserError):
    """No checkpoint has the metric by which the best one is sought."""


def best_step(directory: Path, best: str, score: Callable[[float], float] = float) -> int:
    """Return the step whose recorded metric `best` has the largest score, the newest of several.

    Args:
        directory: the checkpoint folder, with one folder for each step.
        best: the metric that ranks steps, as `open_manager` takes it.
        score: of its value, larger is better.

    Returns:
        The step.

    Raises:
        NoMetricError: no checkpoint has the metric.
        UserError: the metrics of one cannot be read.
    """
    ranked = []
    for step in steps_in(directory):
        path = directory / str(step) / METRICS / METRICS
        value = _read_metrics(path).get(best) if path.exists() else None
        if isinstance(value, int | float) and value == value:
            ranked.append((score(value), step))
    if not ranked:
        raise NoMetricError(
            f"{directory}: no checkpoint has {best}, which says what is best; take one by its step"
        )
    return max(ranked)[1]


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(files.read_bytes(path, "the metrics of a checkpoint")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: the metrics of a checkpoint cannot be read ({error}); delete its folder"
        ) from error


def _metadata(folder: Path) -> PyTree:
    """Return the shapes and types of a checkpoint's state; UserError where Orbax cannot."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.metadata(folder / STATE).item_metadata.tree
    except Exception as error:  # as of `_read`
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> UserError:
    """Return the line for a checkpoint that Orbax cannot read."""
    reason = str(error).strip().split("\n")[0][:160]
    return UserError(
        f"{folder}: this checkpoint cannot be read ({reason}); it may be truncated: {BEFORE}"
    )


def _read(folder: Path, target: PyTree) -> PyTree:
    """Return what Orbax restores of a checkpoint; UserError where it cannot."""
    _quiet_event_loop()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            args = ocp.args.PyTreeRestore(item=target, partial_restore=True)
            return checkpointer.restore(folder / STATE, args=args)
    except Exception as error:  # Orbax, TensorStore and the file system each raise their own kinds
        raise _unreadable(folder, error) from error
