"""Orbax checkpoints of a run.

The latest two and the best one are kept. They are written in the background, each whole or absent.
Arrays are saved as NumPy, so that they restore on any number of devices. Beside the state lies its
manifest: the step, a digest of every array, and notes of whoever saves it. Orbax notices no flipped
bit and no renamed folder; the manifest does.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr
from orbax.checkpoint import checkpoint_managers as policies

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.types import PyTree

STATE = "state"
MANIFEST = "manifest"
BEFORE = "delete this folder to go on from the one before it"
_UNRANKED = -1.0


def open_manager(directory: Path, best: str) -> ocp.CheckpointManager:
    """Return a manager that keeps the latest two steps and the one with the largest metric `best`.

    Orbax's own `best_fn` would delete the latest step where it is not among the best, and a resumed
    run would go backwards; the union of two policies does not.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)

    def rank(metrics: dict[str, float]) -> float:
        return metrics.get(best, _UNRANKED)

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
        metrics: the metrics of this step; the one called `best` in `open_manager` ranks it.
        notes: JSON values, which `read_notes` returns.
    """
    if step in manager.all_steps():
        return
    state = jax.device_get(state)
    arrays = {name: digest(array) for name, array in _named(state)}
    manifest = {"step": step, "arrays": arrays, "notes": notes or {}}
    items = {STATE: ocp.args.PyTreeSave(state), MANIFEST: ocp.args.JsonSave(manifest)}
    with files.writing(Path(str(manager.directory)), sum(a.nbytes for _, a in _named(state))):
        manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)


def digest(array: np.ndarray) -> str:
    """Return 16 hexadecimal digits that depend on the type, the shape and every bit."""
    content = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.hexdigest()[:16]


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
        if np.shape(got) != np.shape(want):
            raise UserError(
                f"{folder}: {name} has shape {np.shape(got)}, "
                f"this configuration needs {np.shape(want)}"
            )
        if name in saved and digest(np.asarray(got)) != saved[name]:
            raise UserError(f"{folder}: {name} is not what was saved, its bits changed; {BEFORE}")
    return state


def read_notes(directory: Path, step: int) -> dict[str, Any]:
    """Return the notes of a checkpoint; {} for one of an earlier version, which has none."""
    return _read_manifest(directory.resolve() / str(step)).get("notes", {})


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint; {} for one of an earlier version, which has none."""
    path = folder / MANIFEST / "metadata"
    if not path.parent.exists():
        return {}
    try:
        manifest = json.loads(files.read_bytes(path, "the manifest of a checkpoint"))
        step, arrays, notes = manifest["step"], dict(manifest["arrays"]), dict(manifest["notes"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); {BEFORE}") from error
    if str(step) != folder.name:
        raise UserError(f"{folder}: is the checkpoint of step {step} under another name; {BEFORE}")
    return {"arrays": arrays, "notes": notes}


def latest_step(manager: ocp.CheckpointManager) -> int:
    """Return the newest complete step; UserError where there is none."""
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{manager.directory}: no checkpoint found, expected folders named by step")
    return step


def steps_in(directory: Path) -> list[int]:
    """Return the complete steps in a checkpoint folder, ascending; UserError for none."""
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit() and p.is_dir())
    if not steps:
        raise UserError(
            f"{directory}: no checkpoint found; expected a work directory of a pretraining run"
        )
    return steps


def _read(folder: Path, target: PyTree) -> PyTree:
    """Return what Orbax restores of a checkpoint; UserError where it cannot."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda late: (
        None if "Event loop is closed" in str(late.exc_value) else hook(late)
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            args = ocp.args.PyTreeRestore(item=target, partial_restore=True)
            state = checkpointer.restore(folder / STATE, args=args)
    except Exception as error:  # Orbax, TensorStore and the file system each raise their own kinds
        # The hook stays: reads that were under way still report to the event loop that Orbax has
        # closed by now.
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{folder}: this checkpoint cannot be read ({reason}); it may be truncated: {BEFORE}"
        ) from error
    sys.unraisablehook = hook
    return state
