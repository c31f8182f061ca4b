"""Where a run comes from: `provenance.json` in its work directory, and in its result.json.

    {"commit": "1c30aa8...", "changed": false, "version": "0.1.0", "command": "python launch.py...",
     "parents": [{"path": "runs/byol", "step": 1100, "sha256": "...", "provenance": {...}}],
     "later": [{"commit", "changed", "version", "command"}]}

It is written at the first start, with what that start read of other runs: the file or run of
`weights`, the run of `checkpoint`. A later start of another commit is added to `later`.
"""

import functools
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import warn

NAME = "provenance.json"
PATIENCE = 2.0  # seconds that git may take
GENERATIONS = (
    10  # of parents that are kept: JSON that nests deeper than `schema.DEEPEST` is refused
)
LONGEST = 10_000  # characters of a command that are kept
PROGRAM = ("ssl_jax", "configs", "launch.py")  # what decides whether a checkout was changed
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_words: ContextVar[Sequence[str] | None] = ContextVar("words", default=None)


@contextmanager
def started_by(words: Sequence[str]) -> Iterator[None]:
    """Within this context runs are started by these words of a command line."""
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def provenance(parents: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return the provenance of what this process starts now; `parents` as `parent` gives them."""
    return {**program(), "command": command(), "parents": list(parents), "later": []}


def parent(path: Path, step: int | None, sha256: str | None) -> dict[str, Any]:
    """Return the entry of something that a run began with.

    Args:
        path: a file, an exported folder or a work directory.
        step: the checkpoint of a work directory; None for others.
        sha256: digest of the file, or of the checkpoint's manifest; None where it has none.

    Returns:
        The entry, with the provenance that the folder states; None where it states none.
    """
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name == "model.safetensors"  # alone, a file belongs to no folder
    own = stated(folder) if named else None
    return {"path": str(path), "step": step, "sha256": sha256, "provenance": own}


def begin(directory: Path, parents: Sequence[dict[str, Any]] | None) -> None:
    """Write provenance.json at a run's first start; add a later start of another commit.

    Call it before config.json is written: a directory that has one but no provenance is of before
    there was any, and its first start is unknown.

    Args:
        directory: the work directory.
        parents: what this start read of other runs; None: nothing, as it goes on from a checkpoint,
            and the parents are those of the first start.
    """
    path = directory / NAME
    now = provenance(parents or ())
    content = _read(path)
    if os.path.lexists(path) and content is None:
        warn(f"{path}: damaged, kept as {files.keep_beside(path).name}")
    if content is None and os.path.lexists(directory / "config.json"):
        content = {"commit": None, "changed": None, "version": None, "command": ""}
        content |= {"parents": [], "later": []}
    if content is None:
        content = now
    elif parents is not None:
        content["parents"] = now["parents"]
    start = {name: now[name] for name in ("commit", "changed", "version", "command")}
    known = [content, *content["later"]]
    if not any(_same_program(start, other) for other in known):
        content["later"].append(start)
    files.write_whole(path, json.dumps(content, indent=1) + "\n")


def _same_program(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("commit", "changed", "version"))


def stated(folder: Path) -> dict[str, Any] | None:
    """Return the provenance that a work directory or an exported folder states, if any.

    It may be somebody else's: what is not of the right type is left out.
    """
    written = _read(folder / NAME)
    if written is None:
        result = _json(folder / "result.json")
        written = _checked(result.get("provenance")) if isinstance(result, dict) else None
    return written


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a provenance.json; None where there is none, or it is damaged."""
    return _checked(_json(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(files.read_text(path, "JSON"))
    except (UserError, ValueError, RecursionError):
        return None


def _checked(content: Any, generations: int = GENERATIONS) -> dict[str, Any] | None:
    """Return what is a provenance in `content`; None where it is none."""
    if not isinstance(content, dict) or not isinstance(content.get("command"), str):
        return None
    parents, later = content.get("parents"), content.get("later")
    return _start(content) | {
        "parents": [
            {
                "path": str(entry.get("path")),
                "step": entry["step"] if type(entry.get("step")) is int else None,
                "sha256": _text(entry.get("sha256")),
                "provenance": _checked(entry.get("provenance"), generations - 1),
            }
            for entry in (parents if isinstance(parents, list) and generations > 0 else ())
            if isinstance(entry, dict)
        ],
        "later": [_start(e) for e in (later if isinstance(later, list) else ()) if _is_start(e)],
    }


def _is_start(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("command"), str)


def _start(content: dict[str, Any]) -> dict[str, Any]:
    changed = content.get("changed")
    return {
        "commit": _text(content.get("commit")),
        "changed": changed if isinstance(changed, bool) else None,
        "version": _text(content.get("version")),
        "command": content["command"][:LONGEST],
    }


def _text(value: Any) -> str | None:
    return value[:LONGEST] if isinstance(value, str) else None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits; UserError where it cannot be read."""
    with files.reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- This start -----------------------------------------------------------------------------------


def command() -> str:
    """Return the command line of this start, as a shell takes it.

    The installed command goes by its name: where an environment lies says who made it, and nothing
    of the run.
    """
    words = list(sys.argv if (given := _words.get()) is None else given)
    path = Path(words[0]) if words else Path()
    if path.parts[-2:] == ("ssl_jax", "__main__.py"):
        words[:1] = ["python", "-m", "ssl_jax"]
    elif path.stem == "ssl-jax":  # .exe on Windows
        words[0] = path.stem
    elif path.suffix == ".py":
        words = ["python", *words]
    return shlex.join(words)[:LONGEST]


@functools.cache
def program() -> dict[str, Any]:
    """Return commit, changed and version of this program, found out once in a process.

    commit: of the checkout that the package lies in; None for an installed wheel.
    changed: whether tracked files of the program differ from it; None where git does not tell.
    version: of the installed package; None where it is not installed.
    """
    root = Path(__file__).parents[2]
    try:
        version = metadata.version("ssl-jax")
    except metadata.PackageNotFoundError:
        version = None
    if not os.path.lexists(root / ".git"):
        return {"commit": None, "changed": None, "version": version}
    commit, changed = ask_git(root)
    return {"commit": commit or read_head(root), "changed": changed, "version": version}


def ask_git(root: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether the program was changed, as git has it; None where it does not say.

    It is asked once, for `PATIENCE` seconds, and is waited for no longer: it may be absent, refuse
    the checkout of another user, or hang on a file system.
    """
    words = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch"]
    words += ["--untracked-files=no", "--ignore-submodules=all", "--", *PROGRAM]
    # of a git that calls us (a hook), they would name another repository; locks are for its users
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            words,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None, None
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None, None
    finally:
        _end(process)
    lines = said.decode(errors="replace").splitlines()
    mark = "# branch.oid "
    commit = next((line.removeprefix(mark) for line in lines if line.startswith(mark)), "")
    if process.returncode or not COMMIT.fullmatch(commit):
        return None, None
    return commit, any(not line.startswith("#") for line in lines)


def _end(process: subprocess.Popen) -> None:
    """End a process with all that it began, and wait no longer than a moment for it."""
    if process.poll() is None:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    if process.stdout:
        process.stdout.close()


def read_head(root: Path) -> str | None:
    """Return the commit that a checkout's .git names, without git; None where it is not found."""
    try:
        folder = root / ".git"
        if folder.is_file():  # of a worktree: "gitdir: PATH"
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if head.startswith("ref:"):
            head = _resolved(folder, head.removeprefix("ref:").strip())
    except (OSError, ValueError):
        return None
    return head if COMMIT.fullmatch(head) else None


def _resolved(folder: Path, name: str) -> str:
    """Return the commit of a reference such as refs/heads/main; "" where it has none."""
    common = folder / "commondir"
    shared = folder / common.read_text().strip() if common.is_file() else folder
    for place in (folder / name, shared / name):
        if place.is_file():
            return place.read_text().strip()
    packed = (shared / "packed-refs").read_text().splitlines()
    return next((line.split()[0] for line in packed if line.split()[1:] == [name]), "")
