"""The work directory of a run, and when a second start on it is refused.

It holds config.json (as it ran), metrics.csv, dynamics.npz, checkpoints/, features/, result.json,
figures/*.png.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

from ssl_jax.errors import UserError

# The fields, and the sections (with a dot behind), in which two starts of one run may differ, on
# one machine or on two. They decide where it runs and what is seen of it, not what it trains.
FREE = (
    "data.data_dir",
    "data_dir",
    "data.resident",
    "devices",
    "steps_per_call",
    "together",
    "workers",
    "log_every",
    "dynamics.",
    "eval_every",
    "checkpoint_every",
)
# Two starts of one run may differ in these, too: the last one evaluates the network. Results in
# one table may not: their accuracies would not be comparable.
PROBES = ("probe.",)
# Fields that older work directories lack, with the values that mean what their runs did.
LATER: dict[str, Any] = {"regularisers.variance": 0.0}
LISTED = 8  # differing fields that a message lists one by one


def check_workdir(path: str, config: dict) -> Path:
    """Return the directory, not yet touched, after checking that this run may use it.

    UserError where it cannot be written, or holds a run of another configuration.
    """
    directory = Path(path)
    existing = next(
        p for p in (directory, *directory.absolute().parents) if p.exists() or p.is_symlink()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "may not be written" if existing.is_dir() else "is not a directory"
        raise UserError(
            f"--workdir: got {directory}, but {existing} {why}; "
            "takes a directory that can be written"
        )
    if (directory / "config.json").exists():
        refuse_other(read_json(directory / "config.json"), config, directory)
    return directory


def open_workdir(path: str, config: dict) -> Path:
    """Return the directory, made if need be, with `config` written into it.

    Call it only after every other check has passed.
    """
    directory = check_workdir(path, config)
    try:
        (directory / "figures").mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", config)
    except OSError as error:
        raise UserError(
            f"--workdir: {error.filename or directory} cannot be written ({error.strerror})"
        ) from error
    return directory


def refuse_other(earlier: dict, config: dict, directory: Path) -> None:
    """Refuse a configuration that would compute something else than the earlier one did.

    Args:
        earlier: the configuration in the directory's config.json.
        config: the configuration of this start.
        directory: the work directory, for the message.
    Raises:
        UserError: the tasks differ, or fields outside `FREE` and `PROBES`, which it lists.
    """
    old, new = flatten(earlier), flatten(config)
    old = {name: value for name, value in LATER.items() if name in new} | old
    if old.get("task") != new.get("task"):
        raise UserError(
            f"--workdir: {directory} holds a {old.get('task')!r} task, "
            f"not a {new.get('task')!r} one; take another directory"
        )
    differing = [
        f"{name} {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "absent") != new.get(name, "absent")
        and not is_free(name, FREE + PROBES)
        and not (name == "epochs" and _extends_freely(old))
    ]
    if differing:
        more = f"; and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
        raise UserError(
            f"--workdir: {directory} holds a run with another configuration "
            f"({'; '.join(differing[:LISTED])}{more}); "
            "take another directory, or these fields as they were"
        )


def is_free(field: str, free: tuple[str, ...] = FREE) -> bool:
    """Return whether `free` names the field, or a section that contains it."""
    return any(field == name or (name.endswith(".") and field.startswith(name)) for name in free)


def _extends_freely(config: dict) -> bool:
    """Return whether more epochs only append: no schedule depends on the number of epochs."""
    return {config.get("schedule.name"), config.get("target.schedule")} <= {"constant", None}


def flatten(tree: dict) -> dict[str, Any]:
    """Return a nested dict as {"a.b": value}, without the fields that are None."""
    return {name: value for name, value in spread(tree).items() if value is not None}


def spread(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as {"a.b": value}, with the fields that are None."""
    flat = {}
    for name, value in tree.items():
        inner = (
            spread(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
        flat |= {k: list(v) if isinstance(v, tuple) else v for k, v in inner.items()}
    return flat


def read_json(path: Path) -> dict:
    """Return the content of a JSON file; UserError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected a work directory of this program") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # bytes that are no text, text that is no JSON
        raise UserError(
            f"{path}: damaged, not JSON ({error}); repair it, or take another work directory"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: damaged, holds a {type(content).__name__}; "
            "repair it, or take another work directory"
        )
    return content


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, whole or not at all."""
    # several machines may share the directory
    scratch = path.with_suffix(f".{platform.node()}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(scratch, path)
