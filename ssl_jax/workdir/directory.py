"""The work directory of a run, and when a second start on it is refused.

It holds config.json (as it ran), provenance.json, metrics.csv, dynamics.npz, checkpoints/,
features/, result.json, figures/*.png.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.workdir import lock, provenance
from ssl_jax.workdir.schema import DEEPEST, is_deeper

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
    "tensorboard",
)
# Two starts of one run may differ in these, too: the last one evaluates the network. Results in
# one table may not: their accuracies would not be comparable.
PROBES = ("probe.",)
LISTED = 8  # differing fields that a message lists one by one
MOST_EPOCHS = 2**31  # whose steps no run counts


def check_workdir(
    path: str,
    config: dict,
    appends: Callable[[int], bool] = lambda epochs: False,
    defaults: dict | None = None,
    fixed: tuple[str, ...] = (),
    later: tuple[str, ...] = (),
) -> Path:
    """Return the directory, not yet touched, after checking that this run may use it.

    Args:
        path: the directory; it need not exist.
        config: the configuration of this start.
        appends: appends(epochs of the earlier start) -> whether this start's number of epochs
            changes nothing that the earlier one has computed.
        defaults: the defaults of the task's fields. An earlier start that lacks one of them is of
            before there was that field, and did what its default does.
        fixed: free fields that decide what this run trains all the same.
        later: fields that this start does not know yet, and that are not compared.

    Returns:
        The directory.

    Raises:
        UserError: it cannot be written, holds a link to another directory, or holds a run of
            another configuration.
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
    if link := next(linked_folders(directory), None):
        raise UserError(
            f"--workdir: {link} is a link to another directory, into which nothing is written; "
            "delete the link, or take another work directory"
        )
    if os.path.lexists(directory / "config.json"):
        earlier = read_json(directory / "config.json")
        refuse_other(earlier, config, directory, appends, defaults, fixed, later)
    return directory


def linked_folders(directory: Path) -> Iterator[Path]:
    """Yield the links to directories below `directory`, which may be a link itself."""
    if not directory.is_dir():
        return
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:  # another start of a sweep has just deleted it
        return
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({files.reason(error)})") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from linked_folders(Path(entry.path))
        elif entry.is_symlink() and Path(entry.path).is_dir():
            yield Path(entry.path)


def open_workdir(path: str, config: dict) -> Path:
    """Return the directory, checked, made if need be, with `config` written into it.

    Call it only after every other check has passed.
    """
    return begin_workdir(check_workdir(path, config), config)


def begin_workdir(
    directory: Path, config: dict, parents: Sequence[dict[str, Any]] | None = ()
) -> Path:
    """Return the directory, which was checked, made if need be, with `config` written into it.

    This start holds it, so that what killed starts were writing there is deleted.

    Args:
        directory: the work directory.
        config: the configuration of this start.
        parents: as `provenance.begin` takes them.

    Returns:
        The directory.
    """
    files.make_folder(directory / "figures")
    delete_scratch(directory)
    provenance.begin(directory, parents)
    write_json(directory / "config.json", config)
    return directory


def delete_scratch(directory: Path) -> None:
    """Delete unfinished files from a held work directory, but not from others that lie in it."""
    for folder, inner, _ in os.walk(directory):
        inner[:] = [name for name in inner if not _is_workdir(Path(folder, name))]
        files.delete_scratch(Path(folder))


def _is_workdir(folder: Path) -> bool:
    marks = ("config.json", lock.NAME, lock.LEASE)
    return any(os.path.lexists(folder / mark) for mark in marks)


def refuse_other(
    earlier: dict,
    config: dict,
    directory: Path,
    appends: Callable[[int], bool] = lambda epochs: False,
    defaults: dict | None = None,
    fixed: tuple[str, ...] = (),
    later: tuple[str, ...] = (),
) -> None:
    """Refuse a configuration that would compute something else than the earlier one did.

    Args:
        earlier: the configuration in the directory's config.json.
        config: the configuration of this start.
        directory: the work directory, for the message.
        appends: as `check_workdir` takes it.
        defaults: as `check_workdir` takes them.
        fixed: as `check_workdir` takes them.
        later: as `check_workdir` takes them.

    Raises:
        UserError: the tasks differ, or fields outside `FREE` and `PROBES`, which it lists.
    """
    old, new = flatten(complete(earlier, defaults or {}, config)), flatten(config)
    if old.get("task") != new.get("task"):
        raise UserError(
            f"--workdir: {directory} holds the task {old.get('task')!r}, "
            f"not {new.get('task')!r}; take another directory"
        )
    differing = [
        name
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "absent") != new.get(name, "absent")
        and (name in fixed or not is_free(name, FREE + PROBES))
        and name not in later
    ]
    # only where it is all that differs: `appends` builds the schedules of this configuration
    before = old.get("epochs")
    if differing == ["epochs"] and type(before) is int and 0 < before < MOST_EPOCHS:
        if appends(before):
            return
    if differing:
        more = f"; and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
        listed = "; ".join(
            f"{name} {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
            for name in differing[:LISTED]
        )
        raise UserError(
            f"--workdir: {directory} holds a run with another configuration ({listed}{more}); "
            "take another directory, or these fields as they were"
        )


def complete(earlier: dict, defaults: dict, config: dict) -> dict[str, Any]:
    """Return a stored configuration with the fields of a later version at their defaults.

    Args:
        earlier: the stored configuration.
        defaults: the defaults of fields, those that neither configuration has included.
        config: the configuration of this start, whose fields are completed.

    Returns:
        The fields by their full names.
    """
    stored, wanted = spread(earlier), spread(config)
    later = {name: value for name, value in spread(defaults).items() if name in wanted}
    return later | stored


def is_free(field: str, free: tuple[str, ...] = FREE) -> bool:
    """Return whether `free` names the field, or a section that contains it."""
    return any(field == name or (name.endswith(".") and field.startswith(name)) for name in free)


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
    text = files.read_text(path, "a work directory of this program")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # text that is no JSON, or nested without end
        raise UserError(
            f"{path}: damaged, not JSON ({error}); repair it, or take another work directory"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: damaged, holds a {type(content).__name__}; "
            "repair it, or take another work directory"
        )
    if is_deeper(content):
        raise UserError(
            f"{path}: damaged, nested deeper than {DEEPEST} levels; "
            "repair it, or take another work directory"
        )
    return content


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, whole or not at all."""
    files.write_whole(path, json.dumps(content, indent=1) + "\n")
