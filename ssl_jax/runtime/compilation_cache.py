"""Compiled programs on disk, so that the second start of a command need not compile again.

JAX stores programs and looks them up by program, versions, flags, device and processor features, so
that machines may share a home directory. This module chooses a directory that can be written,
stores small programs too, and bounds the growth.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

import jax

from ssl_jax.runtime.cache_directory import is_own_file, is_private_file, private_folder
from ssl_jax.runtime.terminal import warn

LIMIT = (
    2 * 10**9
)  # bytes; a run on the CPU leaves about one million, and stale programs are never looked up again


def enable_compilation_cache() -> None:
    """Store programs that are compiled from here on in `compiled/` of the user's cache directory.

    JAX's own `JAX_COMPILATION_CACHE_DIR` and `JAX_ENABLE_COMPILATION_CACHE` take precedence. JAX
    executes what it finds there: a link, or a file that another user owns, is deleted first. A
    directory that is not this user's alone, or cannot be written, gives one line of warning, and
    the run goes on.
    """
    settings: Any = jax.config  # a type checker does not know its fields
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return
    try:
        folder = private_folder("compiled")
        delete_foreign(folder)
        delete_oldest(folder, LIMIT)
    except OSError as error:
        warn(f"{error}; compiled programs are not kept")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's default, 1 s, leaves the small programs out.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def delete_foreign(folder: Path) -> None:
    """Delete the links, and the files that another user owns or may have written.

    The folder is closed to others afterwards. Where it was closed before, nobody reached the files,
    which JAX makes writable by the group where the umask lets it.
    """
    closed = not folder.stat().st_mode & 0o077
    folder.chmod(0o700)
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may have deleted it
            if stat.S_ISDIR(path.lstat().st_mode):
                continue
            if not (is_private_file(path) or (closed and is_own_file(path))):
                path.unlink()


def delete_oldest(folder: Path, limit: int) -> None:
    """Delete the oldest files until the rest is at most `limit` bytes.

    JAX's own bound needs the package filelock.
    """
    files = sorted(
        ((entry.stat(), entry.path) for entry in os.scandir(folder) if entry.is_file()),
        key=lambda file: -file[0].st_mtime,
    )
    total = 0
    for status, path in files:
        total += status.st_size
        if total > limit:
            Path(path).unlink(missing_ok=True)  # another process may have deleted it
