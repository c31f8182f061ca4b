"""Leases between processes that share nothing but a folder, on one machine or on several.

A lease is a folder of numbered files: 1, 2, 3, ... The newest rules. To take the lease is to create
the next number, which the file system lets one process do and no other (O_EXCL), so of any number
of processes that see the newest free, or its holder gone, one wins. No file is ever removed, so no
number is given twice.

A holder touches its file every BEAT seconds. It is gone when its process has ended (seen at once on
the same machine) or when its file was not touched for STALE seconds. One that was only asleep sees
a newer number beside its own when it wakes: it has lost the lease.
"""

import contextlib
import json
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

BEAT = 20.0  # seconds between a holder's signs of life
STALE = 300.0  # seconds without one after which it is gone
FREE = "free"


class LeaseLost(Exception):
    """Another process took the lease, since this one had given no sign of life."""


def claim(folder: Path, stale: float = STALE) -> Path | None:
    """Return the lease file that this process now holds; None where it is held already."""
    folder.mkdir(parents=True, exist_ok=True)
    last = newest(folder)
    if last is not None and not is_free(last, stale):
        return None
    path = folder / str(int(last.name) + 1 if last else 1)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:  # another process was first
        return None
    with os.fdopen(descriptor, "w") as file:
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
    numbers = [int(name) for name in os.listdir(folder) if name.isdigit()]
    return folder / str(max(numbers)) if numbers else None


def is_free(path: Path, stale: float) -> bool:
    """Return whether the holder of the lease file `path` freed it, or is gone."""
    text = path.read_text()
    if text == FREE:
        return True
    try:
        known = json.loads(text)
    except ValueError:  # its process is about to write it
        known = {}
    if known.get("machine") == machine() and birth(known["pid"]) != known["birth"]:
        return True
    return time_of(path.parent) - path.stat().st_mtime > stale


def holder(folder: Path) -> str:
    """Return the holder of the lease in words, for messages."""
    try:
        known = json.loads((newest(folder) or folder).read_text())
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError):
        return "another process"


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
