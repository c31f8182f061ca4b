"""The table of tasks by name, and the call of the one that a configuration names."""

from collections.abc import Callable
from typing import NamedTuple

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
from ssl_jax.types import Config, Interrupted


class Task(NamedTuple):
    """A row of the table of tasks."""

    # run(configuration, work directory, interrupted)
    run: Callable[[Config, str, Interrupted], None]
    needs: str  # a section or field that the task's configurations have
    several: bool = False  # whether it may run in several processes
    # where its configurations are, as an error names them; "": in configs/NAME.py alone
    configs: str = ""


MANY = "a --config of that task"
TASKS = {
    "pretrain": Task(pretrain, needs="views", several=True, configs=MANY),
    "supervised": Task(supervised, needs="augment", several=True),
    "probe": Task(probe, needs="checkpoint", several=True),
    "views": Task(views, needs="views", several=True, configs=MANY),
    "experiment": Task(run_experiment, needs="experiment", configs=MANY),
    "sweep": Task(sweep, needs="sweep", configs=MANY),
    "theory": Task(theory, needs="figure"),
    "doctor": Task(doctor, needs="run"),
    "dynamics": Task(dynamics, needs="runs"),
    "report": Task(report, needs="runs"),
}


def run_task(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Run the task that the configuration names.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: whether somebody asked the task to save and stop.

    Raises:
        UserError: `task` is unknown, does not fit the configuration, or takes one process only.
    """
    if config.task not in TASKS:
        raise UserError(f"task: got {config.task!r}, {nearest(config.task, TASKS)}")
    task = TASKS[config.task]
    if not task.several and jax.process_count() > 1:
        raise UserError(
            f"--processes: got {jax.process_count()}, the task {config.task} runs in one"
        )
    if task.needs not in config or ("experiment" in config and config.task != "experiment"):
        takes = task.configs or f"--config configs/{config.task}.py"
        raise UserError(
            f"task: got {config.task!r} in a configuration of another task; takes {takes}"
        )
    task.run(config, directory, interrupted)
