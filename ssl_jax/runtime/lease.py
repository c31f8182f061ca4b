"""Leases between processes that share nothing but a folder, on one machine or on several.

A lease is a folder of numbered files: 1, 2, 3, ... The newest rules. To take the lease is to create
the next number, which the file system lets one process do and no other (O_EXCL), so of any number
of processes that see the newest free, or its holder gone, one wins. No file is ever removed, so no
number is given twice.

A holder touches its file every BEAT seconds. It is gone when its process has ended (seen at once on
the same machine) or when its file was not touched for STALE seconds. One that was only asleep sees
a newer number beside its own when it wakes: it has lost the lease.

A lease file that names no holder (empty, garbage, of a process that died while it wrote it) is held
for TAKING seconds after the last touch. A date further ahead than that of a touch can be counts as
old, and what is no file at all holds nothing.

docs/cluster.md says why no library has taken its place.
"""

import contextlib
import json
import os
import platform
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssl_jax.errors import UserError
from ssl_jax.text import printable, shortened

BEAT = 20.0  # seconds between a holder's signs of life
STALE = 300.0  # seconds without one after which it is gone
TAKING = 30.0  # seconds without one after which a file that names no holder is free
FREE = "free"
NUMBER = re.compile(r"[1-9][0-9]{0,17}")  # a name of a lease file
LONGEST = 4096  # bytes of a lease file that are read


class LeaseLost(Exception):
    """Another process took the lease, since this one had given no sign of life."""


def claim(folder: Path, stale: float = STALE) -> Path | None:
    """Return the lease file that this process now holds; None where it is held already.

    Raises:
        UserError: the folder cannot be made, read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        last = newest(folder)
        if last is not None and not is_free(last, stale):
            return None
        path = folder / str(int(last.name) + 1 if last else 1)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:  # another process was first
            return None
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: no lease can be taken there ({error.strerror}); "
            f"takes a folder {folder} that can be written"
        ) from error
    # On a full disk the file stays empty, and its touches alone hold it.
    with contextlib.suppress(OSError), os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(signature()))
    return path


@contextlib.contextmanager
def holding(path: Path, beat: float = BEAT) -> Iterator[Callable[[], None]]:
    """Keep the claimed `path` alive, and free it at the end.

    Yields check(), which raises LeaseLost where another process has taken the lease.
    """
    ended, lost = threading.Event(), threading.Event()

    def keep() -> None:
        while not ended.wait(beat):
            # the next beat may succeed; if none does, the lease is lost in the end
            with contextlib.suppress(OSError):
                if newest(path.parent) != path:
                    return lost.set()
                os.utime(path)

    def check() -> None:
        if lost.is_set():
            raise LeaseLost(
                f"taken over by {holder(path.parent)}, "
                "after this process had been silent for too long"
            )

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # then it is free when this process ends
            path.write_text(FREE)


def newest(folder: Path) -> Path | None:
    """Return the newest lease file, which rules; None where the lease was never taken."""
    numbers = [int(name) for name in os.listdir(folder) if NUMBER.fullmatch(name)]
    return folder / str(max(numbers)) if numbers else None


def is_free(path: Path, stale: float) -> bool:
    """Return whether the holder of the lease file `path` freed it, or is gone."""
    if not stat.S_ISREG(path.lstat().st_mode):  # no process takes a lease in this way
        return True
    known: dict[str, Any] | None = {}
    with contextlib.suppress(PermissionError):  # another user's: its touches say enough
        text = read_text(path)
        if text == FREE:
            return True
        known = parse_signature(text)
    if known and known["machine"] == machine() and birth(known["pid"]) != known["birth"]:
        return True
    age = time_of(path.parent) - path.lstat().st_mtime
    return abs(age) > (min(stale, TAKING) if known is None else stale)


def read_text(path: Path) -> str:
    """Return the first LONGEST bytes of a lease file, as text."""
    with open(path, "rb") as file:
        return file.read(LONGEST).decode(errors="replace")


def parse_signature(text: str) -> dict[str, Any] | None:
    """Return the content of a lease file, as of `signature`; None where it is anything else."""
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(known, dict) or not {"host", "pid", "machine", "birth"} <= known.keys():
        return None
    texts = all(isinstance(known[name], str) for name in ("host", "machine", "birth"))
    return known if texts and type(known["pid"]) is int and 0 < known["pid"] < 2**31 else None


def holder(folder: Path) -> str:
    """Return the holder of the lease in words, for messages."""
    with contextlib.suppress(OSError):
        path = newest(folder)
        if path and path.is_file():
            return signatory(read_text(path))
    return signatory("")


def signatory(text: str) -> str:
    """Return the process whose `signature` a file holds, in words, for messages."""
    known = parse_signature(text)
    if known is None:
        return "another process"
    return f"process {known['pid']} on {shortened(printable(known['host']), 80)}"


def signature() -> dict:
    """Return the content of a lease file: host, process, machine and start of the process."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "machine": machine(),
        "birth": birth(os.getpid()),
    }


def birth(pid: int) -> str | None:
    """Return when the process `pid` of this machine began; None where it has ended.

    The system reuses process numbers, so a number alone does not identify a process.
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return fields[19] if fields[0] not in "ZX" else None  # zombie, dead
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def machine() -> str:
    """Return host name, boot and process-number namespace of this machine, as one string."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += " " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name += " " + os.readlink("/proc/self/ns/pid")
    return name


def time_of(folder: Path) -> float:
    """Return the time by the clock that dates the files of `folder`, in seconds."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
