"""The door: `python launch.py --config configs/NAME.py[:ARG] --workdir DIR [--config.section.field=VALUE ...]`.

A mistake of the user is one line that begins with "error:" and exit status 2.
"""

import inspect
import os
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from ssl_jax.errors import UserError, nearest

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARG]")
WORKDIR = flags.DEFINE_string("workdir", None, "directory of this run; the same one goes on where it stopped")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for several processes")
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes take part")
PROCESS = flags.DEFINE_integer("process", None, "number of this process, from 0")


def main(argv: list[str]) -> int:
    try:
        parse_flags(argv)
        run()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def parse_flags(argv: list[str]) -> None:
    """Reads the flags; UserError for whatever is wrong with them."""
    fields = load_fields(config_value(argv))
    for name in (m[1] for word in argv if (m := re.match(r"--?config\.([\w.]+)", word))):
        if name not in fields:
            raise UserError(f"{name}: no such field, {nearest(name, fields, few=True)}")
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(explain(str(error), fields)) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]}: not understood; fields are given as --config.field=VALUE")
    if WORKDIR.value is None:
        raise UserError("--workdir: missing, takes the directory of this run")


def config_value(argv: list[str]) -> str:
    """What is given for --config."""
    for i, word in enumerate(argv):
        match = re.fullmatch(r"--?config(?:=(.*))?", word)
        if match and (match[1] or argv[i + 1 : i + 2]):
            return match[1] or argv[i + 1]
    raise UserError(f"--config: missing, takes one of {', '.join(known_configs())}")


def load_fields(value: str) -> dict[str, Any]:
    """Every field of the configuration `configs/NAME.py[:ARG]`, by its dotted name, with its default."""
    name, _, argument = value.partition(":")
    if not Path(name).is_file():
        raise UserError(f"--config: no file {name}, {nearest(name, known_configs())}")
    get_config = runpy.run_path(name).get("get_config")
    if get_config is None:
        raise UserError(f"--config: {name} has no get_config, {nearest(name, known_configs())}")
    if argument and not inspect.signature(get_config).parameters:
        raise UserError(f"--config: {name} takes no argument, got {argument!r}")
    config = get_config(*[argument] * bool(argument))
    return flat(config)


def flat(config, prefix: str = "") -> dict[str, Any]:
    """{"encoder.width": 64, ...} of a nested configuration, without the sections themselves."""
    fields = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return fields


def explain(message: str, fields: dict[str, Any]) -> str:
    """One line for what absl and ml_collections say of a value that they could not take."""
    match = re.search(r"--config\.([\w.]+)=(\S*):", message)
    if match and match[1] in fields:
        return f"{match[1]}: got {match[2]!r}, takes a value of type {type(fields[match[1]]).__name__}"
    return message.strip().splitlines()[-1]


def run() -> None:
    """Joins the other processes, if any, and runs the task until it ends or a signal asks it to stop."""
    from ssl_jax import runs  # imports jax, which takes seconds: mistakes in the flags are told before

    join_processes()
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    runs.run_task(CONFIG.value, WORKDIR.value, lambda: bool(asked))


def join_processes() -> None:
    """`jax.distributed` by flags, or by the environment's COORDINATOR, PROCESSES and PROCESS."""
    coordinator = COORDINATOR.value or os.environ.get("SSL_JAX_COORDINATOR")
    if coordinator is None:
        return
    numbers = [PROCESSES.value, PROCESS.value]
    for i, name in enumerate(("SSL_JAX_PROCESSES", "SSL_JAX_PROCESS")):
        text = os.environ.get(name, "")
        if numbers[i] is None and text.isdigit():
            numbers[i] = int(text)
    if None in numbers or not 0 <= numbers[1] < numbers[0]:
        raise UserError(f"--processes, --process: got {numbers}, take how many there are and this one's number from 0")
    import jax

    jax.distributed.initialize(coordinator, num_processes=numbers[0], process_id=numbers[1])


def known_configs() -> list[str]:
    """The configuration files that can be named."""
    folder = Path(__file__).parent / "configs"
    texts = {f"configs/{p.name}": p.read_text() for p in folder.glob("*.py")}
    return sorted(name for name, text in texts.items() if "def get_config" in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
