"""Orbax checkpoints of a run: the latest two and the best one, written in the background, each whole or absent.

Arrays are saved as NumPy, so that they restore on any number of devices.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssl_jax.errors import UserError
from ssl_jax.optim import path_of
from ssl_jax.types import PyTree

STATE = "state"
_UNRANKED = -1.0


def open_manager(directory: Path, best: str) -> ocp.CheckpointManager:
    """A manager on `directory` that keeps the latest two steps and the one whose metric `best` is largest.

    Orbax's own `best_fn` would delete the latest step where it is not among the best, and a resumed run would go
    backwards; the union of two policies does not.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    policy = policies.AnyPreservationPolicy(
        [
            policies.LatestN(2),
            policies.BestN(
                get_metric_fn=lambda m: (m or {}).get(best, _UNRANKED),
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(directory.resolve(), options=options)


def save(manager: ocp.CheckpointManager, state: PyTree, step: int, metrics: dict[str, float]) -> None:
    """Starts writing `state` as `step`; a step that is already there stays as it is."""
    if step in manager.all_steps():
        return
    manager.save(step, args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(jax.device_get(state))}), metrics=metrics)


def restore(manager: ocp.CheckpointManager, like: PyTree) -> PyTree:
    """The newest checkpoint as NumPy arrays of the structure, shapes and types of `like`; UserError otherwise."""
    step = latest_step(manager)
    target = jax.tree.map(np.asarray, jax.device_get(like))
    args = ocp.args.Composite(**{STATE: ocp.args.PyTreeRestore(item=target)})
    folder = Path(str(manager.directory)) / str(step)
    return _checked(lambda: manager.restore(step, args=args)[STATE], target, folder)


def restore_parts(directory: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """Only the parts of the state that `like` names, e.g. {"params": ..., "stats": ...}, from one checkpoint."""
    target = jax.tree.map(np.asarray, jax.device_get(like))
    args = ocp.args.PyTreeRestore(item=target, partial_restore=True)
    folder = directory.resolve() / str(step)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return _checked(lambda: checkpointer.restore(folder / STATE, args=args), target, folder)


def latest_step(manager: ocp.CheckpointManager) -> int:
    """The newest complete step; UserError where there is none."""
    step = manager.latest_step()
    if step is None:
        raise UserError(f"{manager.directory}: no checkpoint found, expected folders named by step")
    return step


def steps_in(directory: Path) -> list[int]:
    """Complete steps in a checkpoint folder, ascending; UserError where there are none."""
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit() and p.is_dir())
    if not steps:
        raise UserError(f"{directory}: no checkpoint found; expected a work directory of a pretraining run")
    return steps


def _checked(read, target: PyTree, folder: Path) -> PyTree:
    """What `read()` returns, if it is whole and has the target's shapes. Orbax checks neither for NumPy targets."""
    try:
        state = read()
    except Exception as error:  # Orbax, TensorStore and the file system each raise their own kinds
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{folder}: this checkpoint cannot be read ({reason}); it may be truncated: delete this folder to go on "
            "from the one before it"
        ) from error
    for (path, want), got in zip(jax.tree.leaves_with_path(target), jax.tree.leaves(state), strict=True):
        if np.shape(got) != np.shape(want):
            raise UserError(
                f"{folder}: {path_of(path)} has shape {np.shape(got)}, this configuration needs {np.shape(want)}"
            )
    return state
