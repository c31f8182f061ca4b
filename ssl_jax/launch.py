"""Run a task from the command line.

    python launch.py --config configs/NAME.py[:ARG] --workdir DIR [--config.section.field=VALUE ...]
    ssl-jax --config NAME[:ARG] --workdir DIR [--config.section.field=VALUE ...]

Both are the same command. A configuration is a file, or the name of a packaged one, such as
quickstart or sweeps/table1.

The same command on the same work directory resumes where it stopped. A user's mistake gives one
line that begins with "error:", and exit status 2. A stop gives one line, and status 130 after
Ctrl-C, 75 after SIGTERM or SIGHUP: the same command goes on (`ssl_jax/runtime/stops.py`).
"""

import inspect
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssl_jax.builders.configurations import find_config, known_configs, packaged_configs
from ssl_jax.errors import UserError, nearest
from ssl_jax.runtime import machine, stops, terminal
from ssl_jax.runtime.memory import use_huge_pages
from ssl_jax.types import Config

if TYPE_CHECKING:
    from ssl_jax.runs import Run

# the tasks that gain by a new start of the process, see `use_huge_pages`
TRAINING = ("pretrain", "supervised", "probe", "embed", "sweep", "experiment")
TAKES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "numbers with commas between them",
}


def main(argv: list[str], own_process: bool = False) -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the words; the first is the program's name.
        own_process: whether the process serves this command alone, so that it may start anew.

    Returns:
        0, or 2 after a UserError, or 130 after Ctrl-C in a process that serves others as well.

    Raises:
        Stopped: this process of its own was stopped; `stops.run` makes it the status 130 after
            Ctrl-C, 75 after SIGTERM or SIGHUP.
    """
    try:
        if {"-h", "--help"} & set(argv):
            print(f"{__doc__}\nConfigurations: {', '.join(known_configs())}")
        else:
            values = parse_flags(argv)
            config: Config = values["config"].value
            if own_process and config.task in TRAINING:
                use_huge_pages()
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
    check_names(argv, config)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "directory of this run", flag_values=values)
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for several processes", flag_values=values
    )
    flags.DEFINE_integer("processes", None, "how many processes take part", flag_values=values)
    flags.DEFINE_integer("process", None, "number of this process, from 0", flag_values=values)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        known = ("config", "workdir", "coordinator", "processes", "process")
        raise UserError(
            f"--{error.flagname}: no such flag, {nearest(error.flagname, known)}"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(explain(str(error), flat(config))) from error
    if len(rest) > 1:
        raise UserError(
            f"{rest[1]}: not understood; fields are given as --config.section.field=VALUE"
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


def read_config(value: str) -> ConfigDict:
    """Return the configuration NAME[:ARG] with its defaults; `find_config` says what NAME is."""
    name, colon, argument = value.partition(":")
    name = str(find_config(name))
    try:
        with packaged_configs():
            get_config = runpy.run_path(name).get("get_config")
            if get_config is None:
                raise UserError(
                    f"--config: {name} has no get_config, {nearest(name, known_configs())}"
                )
            if colon and not inspect.signature(get_config).parameters:
                raise UserError(f"--config: {name} takes no argument, got {argument!r}")
            config = get_config(*[argument] * bool(colon))
    except UserError:
        raise
    # a configuration is the user's own program: any mistake may be in it
    except Exception as error:
        raise UserError(
            f"--config: {name}, {where(error, name)}{type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config of {name} gave {type(config).__name__}, must return a ConfigDict"
        )
    return config


def where(error: Exception, name: str) -> str:
    """Return "line 3: ", the line of the file `name` that raised the error; "" where unknown."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == name
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    return f"line {line}: " if line else ""


def check_names(argv: list[str], config: ConfigDict) -> None:
    """Raise a UserError for a word that would set a section or an unknown field."""
    fields = flat(config)
    for name in (m[1] for word in argv if (m := re.match(r"--?(?:no)?config\.([^=]*)", word))):
        inner = [field for field in fields if field.startswith(f"{name}.")]
        if inner:
            raise UserError(
                f"{name}: is a section, takes no value itself; its fields are {', '.join(inner)}"
            )
        if name not in fields:
            raise UserError(
                f"{name or '--config.'}: no such field, {nearest(name, fields, few=True)}"
            )


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field by its full name, as {"encoder.width": int, ...}."""
    fields = {}
    for name, value in config.items():
        inner = isinstance(value, ConfigDict)
        fields |= (
            flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": config.get_type(name)}
        )
    return fields


def explain(message: str, fields: dict[str, type]) -> str:
    """Return one line for the error of absl or ml_collections about a value."""
    if match := re.search(r"--config\.([\w.]+)=(.*?): ", message, re.DOTALL):
        return f"{match[1]}: got {match[2]!r}, takes {TAKES.get(fields[match[1]], 'text')}"
    if match := re.search(r"(--\S+?)=(.*?): ", message, re.DOTALL):
        return f"{match[1]}: got {match[2]!r}, takes a whole number"
    if match := re.fullmatch(r"Missing value for flag (\S+)", message):
        return f"{match[1]}: no value after it, takes {match[1]}=VALUE"
    return message


def run(values: flags.FlagValues) -> None:
    """Join the other processes, if any, and run the task until it ends or is stopped."""
    machine.require_address_space()
    # Here, since they import jax, which takes seconds: mistakes in the flags are reported before.
    from ssl_jax.runtime import compilation_cache
    from ssl_jax.tasks import registry

    compilation_cache.enable_compilation_cache()
    join_processes(values["coordinator"].value, values["processes"].value, values["process"].value)
    machine.require_devices()
    workdir: Any = values["workdir"].value
    registry.run_task(values["config"].value, workdir, stops.requested)


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
    words = ["--config", os.fspath(config_path), "--workdir", os.fspath(workdir)]
    words += [f"--config.{name}={_spelled(value)}" for name, value in _spread(fields)]
    run(parse_flags(["ssl_jax.train", *words]))
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


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run through `jax.distributed`.

    SSL_JAX_COORDINATOR, SSL_JAX_PROCESSES and SSL_JAX_PROCESS in the environment stand in for
    arguments that are None.

    Args:
        coordinator: HOST:PORT of process 0. None: there is one process, and nothing is done.
        processes: how many processes take part.
        process: number of this process, from 0.

    Raises:
        UserError: processes and process do not fit each other.
    """
    coordinator = coordinator or os.environ.get("SSL_JAX_COORDINATOR")
    if coordinator is None:
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
    import jax

    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)


def _number_in(name: str) -> int | None:
    """Return the number in a variable of the environment; None where it has none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else None


def alone() -> bool:
    """Return whether no other process takes part, whose end this one's shutdown is part of."""
    distributed = getattr(sys.modules.get("jax"), "distributed", None)
    return distributed is None or not distributed.is_initialized()
