"""The directory on disk for everything that can be computed again.

What is executed from it (`native/`, `compiled/`) comes from `private_folder` alone: a folder that
nobody but this user can change.
"""

import atexit
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssl_jax.files import local_path
from ssl_jax.runtime.terminal import warn


def user_cache() -> Path:
    """Return `$SSL_JAX_CACHE`, else `ssl_jax` in the user's cache directory; it need not exist.

    A user without a home, or in somebody else's, has a temporary directory until this process ends,
    and one line of warning.

    Raises:
        OSError: no temporary directory can be made either.
        UserError: `$SSL_JAX_CACHE` names no local directory.
    """
    if explicit := os.environ.get("SSL_JAX_CACHE"):
        return Path(local_path("SSL_JAX_CACHE", explicit))
    try:
        if everything := os.environ.get("XDG_CACHE_HOME"):
            return Path(everything).expanduser() / "ssl_jax"
        home = Path.home()
        if home.is_dir() and _is_own(home.stat()):
            return home / ".cache" / "ssl_jax"
        reason = f"{home}: is not a home directory of this user"
    except RuntimeError as error:  # a user without a home
        reason = str(error).rstrip(".")
    folder = _temporary_folder()
    _warn(f"{reason}; caches are in {folder} until this process ends (SSL_JAX_CACHE names a place)")
    return folder


def private_folder(name: str) -> Path:
    """Return the folder `name` of the user's cache, which only this user can change.

    It is made if it is missing, mode 0700. Where another user could change what it holds, or where
    it cannot be written, one line of warning says so, and the folder is in a fresh temporary
    directory that is deleted when this process ends.

    Raises:
        OSError: no temporary directory can be made either.
    """
    root = user_cache().absolute()
    folder = root / name
    try:
        reason = weakness(folder, root)  # nothing is made in a place that others own
        if reason is None:
            make_private(folder)
            reason = weakness(folder, root)  # under a sticky bit others may have been first
        if reason is None:
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
    folder = _temporary_folder() / name
    folder.mkdir(mode=0o700, exist_ok=True)
    _warn(f"{reason}; compiled code is made anew in {folder.parent} and not kept")
    return folder


def make_private(folder: Path) -> None:
    """Make the folder and those above it that are missing, each of mode 0700."""
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            place.mkdir(mode=0o700, exist_ok=True)


def weakness(folder: Path, root: Path) -> str | None:
    """Return how another user could change what is found under `folder`, or None.

    The directories from `root` down must belong to this user, be writable by nobody else, and not
    be links. Those that lead to `root` belong to this user or to the superuser; others may write
    there under the sticky bit alone, which keeps them from moving what is not theirs. Directories
    that are missing are not looked at.

    Args:
        folder: an absolute path.
        root: the cache, `folder` or a directory above it; it may be a link of this user.

    Returns:
        One line that names the directory and what is wrong with it, or None.
    """
    if not hasattr(os, "getuid"):  # Windows, where modes say nothing
        return None
    for place in _way(root):
        status = place.lstat()
        if not (_is_own(status) or status.st_uid == 0):
            return f"{place}: belongs to another user (number {status.st_uid})"
        if status.st_mode & stat.S_ISVTX == 0 and _others_write(status):
            return f"{place}: may be written by other users (chmod go-w {place})"
    below = [place for place in reversed(folder.parents) if root in place.parents]
    for place in dict.fromkeys((root, *below, folder)):
        if not os.path.lexists(place):
            break
        status = place.stat() if place == root else place.lstat()
        if stat.S_ISLNK(status.st_mode):
            return f"{place}: is a link, takes a directory"
        if not _is_own(status):
            return f"{place}: belongs to another user (number {status.st_uid})"
        if _others_write(status):
            return f"{place}: may be written by other users (chmod go-w {place})"
    return None


def _way(path: Path) -> Iterator[Path]:
    """Yield every directory and link that is passed on the way to `path`, as far as it exists."""
    for place in (*reversed(path.parents), path):
        if not place.exists():
            return
        yield place
        if place.is_symlink():
            yield from _way(place.parent / os.readlink(place))


def is_own_file(path: Path) -> bool:
    """Return whether `path` is a file, no link, of this user."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and _is_own(status)


def is_private_file(path: Path) -> bool:
    """Return whether `path` is a file, no link, of this user that nobody else may write."""
    return is_own_file(path) and not _others_write(path.lstat())


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.geteuid()


def _others_write(status: os.stat_result) -> bool:
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return hasattr(os, "getuid") and bool(shared) and not stat.S_ISLNK(status.st_mode)


@functools.cache
def _temporary_folder() -> Path:
    """Return a fresh directory of mode 0700, deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ssl_jax-")).absolute()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if reason := weakness(folder, folder):
        raise OSError(f"{reason}; name a private directory in TMPDIR")
    return folder


@functools.cache
def _warn(line: str) -> None:
    """Print a warning once in a process."""
    warn(line)
