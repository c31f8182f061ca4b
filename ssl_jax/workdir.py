"""What lies in a work directory, and when a second start on it is refused.

config.json (as it ran), metrics.csv, checkpoints/, features/, result.json, figures/*.png.
"""

import json
import os
from pathlib import Path
from typing import Any

from ssl_jax.errors import UserError

# Fields in which a continued run may differ from its beginning: they decide what is seen of it, not what it computes.
FREE = (
    "data.data_dir",
    "data.resident",
    "devices",
    "steps_per_call",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "probe.",
)


def open_workdir(path: str, config: dict) -> Path:
    """The directory, made if need be, with `config` written into it; UserError where it cannot be written or holds
    a run that another configuration began.
    """
    directory = Path(path)
    try:
        (directory / "figures").mkdir(parents=True, exist_ok=True)
        write_json(directory / "writable.json", {})
        (directory / "writable.json").unlink()
    except OSError as error:
        raise UserError(f"--workdir: {directory} cannot be written ({error.strerror}); give one that can") from error
    earlier = directory / "config.json"
    if earlier.exists():
        refuse_other(read_json(earlier), config, directory)
    write_json(earlier, config)
    return directory


def refuse_other(earlier: dict, config: dict, directory: Path) -> None:
    """UserError that lists the fields in which `config` would compute something else than `earlier` did."""
    old, new = flatten(earlier), flatten(config)
    differing = [
        f"{name} {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "absent") != new.get(name, "absent")
        and not name.startswith(FREE)
        and not (name == "epochs" and _extends_freely(old))
    ]
    if differing:
        raise UserError(
            f"--workdir: {directory} holds a run with another configuration ({'; '.join(differing)}); "
            "take another directory, or these fields as they were"
        )


def _extends_freely(config: dict) -> bool:
    """More epochs only append to a run whose schedules do not depend on the number of epochs."""
    return {config.get("schedule.name"), config.get("target.schedule")} <= {"constant", None}


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an unset field counts as absent."""
    flat = {}
    for name, value in tree.items():
        inner = flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        flat |= {k: list(v) if isinstance(v, tuple) else v for k, v in inner.items() if v is not None}
    return flat


def read_json(path: Path) -> dict:
    """A JSON file of ours; UserError where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected a work directory of this program") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); take another work directory") from error


def write_json(path: Path, content: dict) -> None:
    """Written whole or not at all."""
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(scratch, path)
