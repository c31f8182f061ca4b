"""The table of tasks by name, and the call of the one that a configuration names."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from ssl_jax.builders.fields import with_local_paths
from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments.registry import run_experiment
from ssl_jax.files import local_path
from ssl_jax.runtime.memory import reporting_out_of_memory
from ssl_jax.runtime.terminal import is_writer
from ssl_jax.tasks.compare import compare
from ssl_jax.tasks.doctor import doctor
from ssl_jax.tasks.dynamics import dynamics
from ssl_jax.tasks.embed import embed
from ssl_jax.tasks.export import export
from ssl_jax.tasks.pretrain import pretrain
from ssl_jax.tasks.probe import probe
from ssl_jax.tasks.report import report
from ssl_jax.tasks.supervised import supervised
from ssl_jax.tasks.sweep import sweep
from ssl_jax.tasks.theory import theory
from ssl_jax.tasks.views import views
from ssl_jax.train.parallel import any_process
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir.directory import flatten
from ssl_jax.workdir.lock import locked


class Task(NamedTuple):
    """A row of the table of tasks."""

    # run(configuration, work directory, interrupted)
    run: Callable[[Config, str, Interrupted], None]
    needs: str  # sections or fields that the task's configurations have, with blanks between them
    several: bool = False  # whether it may run in several processes
    shared: bool = False  # whether several starts may share its work directory
    # where its configurations are, as an error names them; "": in configs/NAME.py alone
    configs: str = ""


MANY = "a --config of that task"
TWO = "--config configs/supervised.py or --config configs/finetune.py:RUN"
TASKS = {
    "pretrain": Task(pretrain, needs="views", several=True, configs=MANY),
    "supervised": Task(supervised, needs="augment", several=True, configs=TWO),
    "probe": Task(probe, needs="checkpoint probe", several=True),
    "embed": Task(embed, needs="map"),
    "views": Task(views, needs="views", several=True, configs=MANY),
    "experiment": Task(run_experiment, needs="experiment", configs=MANY),
    "sweep": Task(sweep, needs="sweep", shared=True, configs=MANY),
    "theory": Task(theory, needs="figure"),
    "doctor": Task(doctor, needs="run"),
    "dynamics": Task(dynamics, needs="runs"),
    "report": Task(report, needs="runs"),
    "compare": Task(compare, needs="runs"),
    "export": Task(export, needs="license"),
}


def takes_several(config: Config) -> bool:
    """Return whether the configuration's task may run in several processes; it may be unknown."""
    return config.task in TASKS and TASKS[config.task].several


def run_task(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Run the task that the configuration names.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: whether somebody asked the task to save and stop.

    Raises:
        UserError: `task` is unknown, does not fit the configuration, or takes one process only; a
            path is none; another start holds the work directory; memory was too small.
    """
    config, directory = with_local_paths(config), local_path("--workdir", directory)
    if config.task not in TASKS:
        raise UserError(f"task: got {config.task!r}, {nearest(config.task, TASKS)}")
    task = TASKS[config.task]
    if not task.several and jax.process_count() > 1:
        raise UserError(
            f"--processes: got {jax.process_count()}, the task {config.task} runs in one"
        )
    if not all(name in config for name in task.needs.split()) or (
        "experiment" in config and config.task != "experiment"
    ):
        takes = task.configs or f"--config configs/{config.task}.py"
        raise UserError(
            f"task: got {config.task!r} in a configuration of another task; takes {takes}"
        )
    alone = contextlib.nullcontext() if task.shared else only_start(Path(directory))
    with alone, reporting_out_of_memory(flatten(config.to_dict())):
        task.run(config, directory, interrupted)


@contextlib.contextmanager
def only_start(directory: Path) -> Iterator[None]:
    """Hold the work directory within this context, by process 0 for all of them.

    Raises:
        UserError: another start holds it; in every process.
    """
    with contextlib.ExitStack() as stack:
        refusal = None
        if is_writer():
            try:
                stack.enter_context(locked(directory))
            except UserError as error:
                refusal = error
        if any_process(refusal is not None):
            raise refusal or UserError(f"--workdir: got {directory}, refused by process 0")
        yield
