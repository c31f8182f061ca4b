"""Run a task from the command line.

    python launch.py --config configs/NAME.py[:ARG] --workdir DIR [--config.section.field=VALUE ...]
    ssl-jax --config NAME[:ARG] --workdir DIR [--config.section.field=VALUE ...]

Both are the same command. A configuration is a file, or the name of a packaged one, such as
quickstart or sweeps/table1.

The same command on the same work directory resumes where it stopped. A user's mistake gives one
line that begins with "error:", and exit status 2. A stop gives one line, and status 130 after
Ctrl-C, 75 after SIGTERM, SIGHUP or SIGUSR1 and where the minutes of a sweep are over: the same
command goes on (`ssl_jax/runtime/stops.py`).
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from ssl_jax.builders.configurations import known_configs
from ssl_jax.builders.fields import read_config, set_fields
from ssl_jax.errors import UserError
from ssl_jax.runtime import machine, stops, terminal
from ssl_jax.runtime.memory import use_huge_pages
from ssl_jax.types import Config
from ssl_jax.workdir import provenance

if TYPE_CHECKING:
    from ssl_jax.runs import Run

# the tasks that gain by a new start of the process, see `use_huge_pages`
TRAINING = ("pretrain", "supervised", "probe", "embed", "sweep", "experiment")


def main(argv: list[str], own_process: bool = False) -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the words; the first is the program's name.
        own_process: whether the process serves this command alone, so that it may start anew.

    Returns:
        0, or 2 after a UserError, or 130 after Ctrl-C in a process that serves others as well.

    Raises:
        Stopped: this process of its own was stopped; `stops.run` makes it the status 130 after
            Ctrl-C, 75 after another signal.
    """
    try:
        if {"-h", "--help"} & set(argv):
            print(f"{__doc__}\nConfigurations: {', '.join(known_configs())}")
        else:
            values = parse_flags(argv)
            config: Config = values["config"].value
            if own_process and config.task in TRAINING:
                use_huge_pages()
            with provenance.started_by(argv):
                run(values)
    except UserError as error:
        if stops.was_raised():
            raise
        terminal.complain(error)
        return 2
    except stops.Stopped:  # ends the process, in `stops.run`
        raise
    except KeyboardInterrupt:  # in a process that is not our own
        print(f"\ninterrupted: {stops.AT_ONCE}", file=sys.stderr)
        return 130
    return 0


def parse_flags(argv: list[str]) -> flags.FlagValues:
    """Return the flags config, workdir, coordinator, processes and process.

    A UserError names the first word that is wrong.
    """
    value, argv = take_config(argv)
    config = read_config(value)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "directory of this run", flag_values=values)
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for several processes", flag_values=values
    )
    flags.DEFINE_integer("processes", None, "how many processes take part", flag_values=values)
    flags.DEFINE_integer("process", None, "number of this process, from 0", flag_values=values)
    rest = set_fields(argv, config, values)
    if rest:
        raise UserError(
            f"{rest[0]}: not understood; fields are given as --config.section.field=VALUE"
        )
    if not values["workdir"].value:
        raise UserError("--workdir: missing, takes the directory of this run")
    return values


def take_config(argv: list[str]) -> tuple[str, list[str]]:
    """Return the value of --config, and the other words."""
    for i, word in enumerate(argv):
        match = re.fullmatch(r"--?config(?:=(.*))?", word)
        if match and match[1]:
            return match[1], argv[:i] + argv[i + 1 :]
        if match and match[1] is None and argv[i + 1 : i + 2]:
            return argv[i + 1], argv[:i] + argv[i + 2 :]
    raise UserError(f"--config: missing, takes one of {', '.join(known_configs())}")


def run(values: flags.FlagValues) -> None:
    """Join the other processes, if any, and run the task until it ends or is stopped."""
    machine.require_address_space()
    # Here, since they import jax, which takes seconds: mistakes in the flags are reported before.
    from ssl_jax.runtime import compilation_cache
    from ssl_jax.tasks import registry

    compilation_cache.enable_compilation_cache()
    config: Config = values["config"].value
    workdir: Any = values["workdir"].value
    several = registry.takes_several(config)
    numbers = values["processes"].value, values["process"].value
    join_processes(values["coordinator"].value, *numbers, several)
    machine.require_devices()
    registry.run_task(config, workdir, stops.requested)


def train(config_path: str | os.PathLike, workdir: str | os.PathLike, **fields: Any) -> "Run":
    """Run a task from Python, as the command line does: `ssl_jax.train`.

        ssl_jax.train("quickstart", "runs/x", epochs=5, optimizer={"learning_rate": 0.1})
        ssl_jax.train("cifar10_small:simsiam", "runs/y", **{"target.tau": 0.9})

    The same call on the same work directory goes on where it stopped.

    Args:
        config_path: a configuration, as `--config` takes it.
        workdir: directory of the run.
        fields: values of fields by their full names, or of sections as dicts.

    Returns:
        The run.

    Raises:
        UserError: what the command line prints as its `error:` line.
    """
    words = ["ssl_jax.train", "--config", os.fspath(config_path), "--workdir", os.fspath(workdir)]
    words += [f"--config.{name}={_spelled(value)}" for name, value in _spread(fields)]
    with provenance.started_by(words):
        run(parse_flags(words))
    from ssl_jax.runs import open_run

    return open_run(workdir)


def _spread(fields: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field by its full name; `section` has a dot behind it."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _spread(dict(value), f"{section}{name}.")
        elif value is None:
            raise UserError(f"{section}{name}: got None, takes a value; leave it out instead")
        else:
            yield f"{section}{name}", value


def _spelled(value: Any) -> str:
    """Return a value as the command line takes it."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def join_processes(
    coordinator: str | None, processes: int | None, process: int | None, several: bool = True
) -> None:
    """Join the other processes of a run through `jax.distributed`.

    Under Slurm's `srun` JAX finds the others by itself. Elsewhere SSL_JAX_COORDINATOR,
    SSL_JAX_PROCESSES and SSL_JAX_PROCESS in the environment stand in for arguments that are None.

    Args:
        coordinator: HOST:PORT of process 0. None: there is one process, or `srun` started several.
        processes: how many processes take part.
        process: number of this process, from 0.
        several: whether the task takes several processes. Those of one that does not, such as a
            sweep, are starts of their own under `srun`.

    Raises:
        UserError: processes and process do not fit each other.
    """
    coordinator = coordinator or os.environ.get("SSL_JAX_COORDINATOR")
    if coordinator is None and not (several and _under_srun()):
        return
    import jax

    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator is None:
        jax.distributed.initialize()
        return
    if processes is None:
        processes = _number_in("SSL_JAX_PROCESSES")
    if process is None:
        process = _number_in("SSL_JAX_PROCESS")
    if processes is None or process is None or not 0 <= process < processes:
        raise UserError(
            f"--processes, --process: got {[processes, process]}, "
            "take how many there are and this one's number from 0"
        )
    machine.require_address(coordinator)
    if process == 0:
        machine.require_free_port(coordinator)
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)


def _under_srun() -> bool:
    """Return whether Slurm's `srun` started this process as one of several."""
    return (_number_in("SLURM_STEP_NUM_TASKS") or 1) > 1


def _number_in(name: str) -> int | None:
    """Return the number in a variable of the environment; None where it has none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else None


def alone() -> bool:
    """Return whether no other process takes part, whose end this one's shutdown is part of."""
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    return distributed is None or not distributed.is_initialized()
