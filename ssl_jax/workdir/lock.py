"""One start at a time works on a work directory.

The kernel releases the lock of a process that dies, so a dead holder's directory is free at once.
Where the file system knows no such locks (Lustre without `flock`, for one), a lease of
`runtime.lease` takes their place.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ssl_jax.errors import UserError
from ssl_jax.runtime import lease

NAME = ".lock"  # names its holder; it is gone when the holder has ended, unless that was killed
LEASE = ".lease"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a work directory within this context, so that no other start touches it.

    It is made where it is missing, and removed at the end where nothing was put into it. Nothing is
    locked where nothing can be written: the task has its own words for that.

    Raises:
        DirectoryTaken: another start holds it.
    """
    made = _make(directory)
    try:
        if not (directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)):
            yield
            return
        with _flock(directory / NAME) as possible, contextlib.ExitStack() as stack:
            if not possible:
                stack.enter_context(_lease(directory / LEASE))
            yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in made:
                folder.rmdir()


def _make(directory: Path) -> list[Path]:
    """Make the directory; return what was missing of its path, deepest first."""
    made: list[Path] = []
    with contextlib.suppress(OSError):
        missing = [p for p in (directory, *directory.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.insert(0, folder)
    return made


@contextlib.contextmanager
def _flock(path: Path) -> Iterator[bool]:
    """Hold a lock of the kernel on the file `path`; yield whether its file system has them."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            why = f"{path} cannot be opened ({error.strerror})"
            raise UserError(f"--workdir: {why}; takes a directory that can be written") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file)
            os.close(file)
            raise _taken(path.parent, holder) from error
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            yield False
            return
        # The holder before may have removed the file between our two calls.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file), os.lstat(path)):
                break
        os.close(file)
    try:
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(file, 0)
            os.write(file, json.dumps(lease.signature()).encode())
        yield True
    finally:
        path.unlink(missing_ok=True)  # before others can lock it
        os.close(file)


@contextlib.contextmanager
def _lease(folder: Path) -> Iterator[None]:
    """Hold the lease `folder`."""
    path = lease.claim(folder)
    if path is None:
        raise _taken(folder.parent, lease.holder(folder))
    with lease.holding(path):
        yield


def _holder(file: int) -> str:
    """Return the process that a lock file names, in words."""
    text = b""
    with contextlib.suppress(OSError):
        text = os.pread(file, lease.LONGEST, 0)
    return lease.signatory(text.decode(errors="replace"))


class DirectoryTaken(UserError):
    """Another start holds the work directory."""


def _taken(directory: Path, holder: str) -> DirectoryTaken:
    return DirectoryTaken(
        f"--workdir: {holder} is at work in {directory}; "
        "wait until it has ended, or take another directory"
    )
