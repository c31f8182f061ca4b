"""The tasks by name, and the one that a configuration names."""

from collections.abc import Callable

import jax

from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments.registry import run_experiment
from ssl_jax.tasks.doctor import doctor
from ssl_jax.tasks.dynamics import dynamics
from ssl_jax.tasks.pretrain import pretrain
from ssl_jax.tasks.probe import probe
from ssl_jax.tasks.report import report
from ssl_jax.tasks.supervised import supervised
from ssl_jax.tasks.sweep import sweep
from ssl_jax.tasks.theory import theory
from ssl_jax.tasks.views import views
from ssl_jax.types import Config

TASKS = {
    "pretrain": pretrain,
    "supervised": supervised,
    "probe": lambda c, d, _: probe(c, d),
    "views": lambda c, d, _: views(c, d),
    "experiment": run_experiment,
    "sweep": lambda c, d, i: sweep(c, d, i, pretrain),
    "theory": lambda c, d, _: theory(c, d),
    "doctor": lambda c, d, _: doctor(c, d),
    "dynamics": lambda c, d, _: dynamics(c, d),
    "report": lambda c, d, _: report(c, d),
}
SEVERAL = ("pretrain", "supervised", "probe", "views")  # tasks that may run in several processes
# A section or field that a task's configurations have.
MARKS = {
    "pretrain": "views",
    "views": "views",
    "supervised": "augment",
    "probe": "checkpoint",
    "experiment": "experiment",
    "theory": "figure",
    "doctor": "run",
    "sweep": "sweep",
    "dynamics": "runs",
    "report": "runs",
}


def run_task(config: Config, directory: str, interrupted: Callable[[], bool]) -> None:
    """The task that the configuration names."""
    if config.task not in TASKS:
        raise UserError(f"task: got {config.task!r}, {nearest(config.task, TASKS)}")
    if config.task not in SEVERAL and jax.process_count() > 1:
        raise UserError(f"--processes: got {jax.process_count()}, the task {config.task} runs in one")
    if MARKS[config.task] not in config or ("experiment" in config and config.task != "experiment"):
        several = config.task in ("pretrain", "views", "experiment", "sweep")
        where = "a --config of that task" if several else f"--config configs/{config.task}.py"
        raise UserError(f"task: got {config.task!r} in a configuration of another task; takes {where}")
    TASKS[config.task](config, directory, interrupted)
