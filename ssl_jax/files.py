"""The boundary that every file passes on its way to and from the disk.

A file appears whole or not at all, and never through a link. What the disk or its owner refuses is
one `UserError` with the place, the reason and, where room is short, the bytes needed.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ssl_jax.errors import UserError

NAME_BYTES, PATH_BYTES = 255, 3840  # of one name, and of a path: 4096 less what lies below it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SCRATCH = re.compile(r"\.[0-9a-f]{32}\.tmp")  # names of files that are not yet whole


def local_path(field: str, text: str) -> str:
    """Return a path that the user wrote, with `~` and `~user` expanded.

    All files of this program are local: a mounted directory serves, a URL does not.

    Args:
        field: where the user wrote it, for the message.
        text: the path.

    Returns:
        The path, as text.

    Raises:
        UserError: no local file can be called so: a URL, control characters, names that are too
            long, a user without a home.
    """
    takes = "takes the path of a local file or directory"
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        raise UserError(f"{field}: got the URL {text!r}, {takes}; copy it, or mount it, first")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UserError(f"{field}: got {text[:200]!r}, {takes} without control characters")
    path = os.path.expanduser(text)
    if text.startswith("~") and path.startswith("~"):
        raise UserError(
            f"{field}: got {text[:200]!r}, where {text.split('/')[0][:200]!r} is no user with a "
            f"home directory; {takes}, such as ./{text[:200]}"
        )
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{field}: got {text[:200]!a}, which this system cannot spell as a name of a file "
            f"({error.reason}); {takes}"
        ) from error
    longest = max(map(len, encoded.split(b"/")))
    if longest > NAME_BYTES or len(encoded) > PATH_BYTES:
        raise UserError(
            f"{field}: got {text[:40]!r}..., {len(encoded)} bytes with a name of {longest}; "
            f"{takes} of at most {PATH_BYTES} bytes, each name at most {NAME_BYTES}"
        )
    return path


def write_whole(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`; if that fails, what was there before stays.

    A link at `path` is replaced itself, and the file that it points to stays as it is.

    Raises:
        UserError: the file cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with writing(path, len(content)), replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` when this context ends well, and is removed otherwise.

    A link at `path` is replaced itself, and the file that it points to stays as it is.

    Raises:
        OSError: the file cannot be written; `writing` around it makes one line of that.
    """
    scratch = path.with_name(f".{uuid.uuid4().hex}.tmp")  # several machines may share the folder
    try:
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut leaves the new name with no bytes
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def delete_scratch(folder: Path) -> None:
    """Delete what killed writers left in a folder in which nobody writes, as far as we may."""
    with suppress(OSError):
        for name in filter(SCRATCH.fullmatch, os.listdir(folder)):
            with suppress(OSError):
                (folder / name).unlink()


def append(path: Path, content: bytes | str) -> None:
    """Add `content` to the end of `path`; never through a link.

    A write that fails half-way is taken back, so that the file stays as it was.

    Raises:
        UserError: the file cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with writing(path, len(content)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            before = os.fstat(file).st_size
            try:
                while content:
                    content = content[os.write(file, content) :]
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)


def make_folder(path: Path) -> Path:
    """Make the directory `path` with those above it, and return it.

    Raises:
        UserError: it cannot be made, or is a link, through which nothing is written.
    """
    if path.is_symlink():
        raise UserError(f"{path}: is a link, takes a directory of its own: delete the link")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def read_bytes(path: Path, expected: str) -> bytes:
    """Return the content of `path`.

    Args:
        path: the file.
        expected: what should be there, for the message: "a work directory of this program".

    Raises:
        UserError: the file is missing or cannot be read.
    """
    with reading(path, expected):
        if not path.is_file():  # a directory, a pipe that nobody writes into
            path.stat()  # says what is wrong with the way there
            raise UserError(f"{path}: is not a file; expected {expected}")
        return path.read_bytes()


def read_text(path: Path, expected: str) -> str:
    """Return the content of `path` as UTF-8 text; arguments and errors as of `read_bytes`."""
    try:
        return read_bytes(path, expected).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, not text ({error}); expected {expected}") from error


def keep_beside(path: Path) -> Path:
    """Move a damaged file to NAME.damaged.SUFFIX, or to a numbered name if that one is taken.

    Returns:
        The new path.
    """
    numbers = (f".{n}" if n else "" for n in range(10**6))
    beside = next(
        kept
        for number in numbers
        if not os.path.lexists(kept := path.with_name(f"{path.stem}.damaged{number}{path.suffix}"))
    )
    with writing(beside):
        os.replace(path, beside)
    return beside


def require_space(folder: Path, needed: int) -> None:
    """Refuse what will not fit on the disk of `folder`, before long work starts.

    Args:
        folder: it need not exist yet.
        needed: bytes.

    Raises:
        OSError: fewer bytes are free; `writing` around it makes one line of that.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        why = f"no space left: {needed:,} bytes needed, {free:,} free"
        raise OSError(errno.ENOSPC, why, str(folder))


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def reading(path: Path, expected: str = "") -> Iterator[None]:
    """Turn what the system refuses within this context into one line; arguments as `read_bytes`."""
    then = f"; expected {expected}" if expected else ""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: not found{then}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}){then}") from error


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the system refuses within this context into one line.

    Args:
        path: the place that the line names.
        needed: bytes that it takes; None: unknown.

    Yields:
        Nothing.

    Raises:
        UserError: for every OSError.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, needed) from error


def cannot_write(path: Path, error: OSError, needed: int | None = None) -> UserError:
    """Return the error for a file that the system does not let us write."""
    line = f"{path}: cannot be written ({reason(error)})"
    if error.errno in FULL:
        room = "" if needed is None else f", which needs {size(needed)}"
        line += f"{room}; free some space, and the same command goes on from what was last saved"
    return UserError(line)


def reason(error: OSError) -> str:
    """Return what the system says, in a few words."""
    return error.strerror or str(error) or type(error).__name__


def size(count: int) -> str:
    """Return a number of bytes in words, such as "12.3 MB"."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
