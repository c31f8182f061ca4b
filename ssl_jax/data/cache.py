"""Decoded splits on disk: uint8 images and int32 labels as `.npy`, with checksums.

A split is three files: `STEM.image.npy`, `STEM.label.npy` and, written last, `STEM.json` (shapes,
types and CRC-32 of the bytes, and what they were decoded from). Each appears by `os.replace`, so
any number of processes may build the same split at once: they write the same bytes, and nobody sees
a half-written file.

What a split was decoded from is told by a digest of the whole files (`files_digest`).
"""

import functools
import hashlib
import io
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime.cache_directory import make_private, user_cache
from ssl_jax.runtime.terminal import progress_bar, warn

Example = tuple[np.ndarray, int]
Arrays = tuple[np.ndarray, np.ndarray]

# Seconds in which a file may change again without a new date: it is not remembered before.
RECENT = 2.0
READERS, GROUP = 8, 100  # threads that read files for their digests, and files that each takes


def cache_roots(cache_dir: str | None) -> list[Path]:
    """Return the directories that may hold decoded splits, first choice first.

    There is one: `cache_dir`, else `$SSL_JAX_CACHE`, else the user's cache directory. Nothing is
    written beside the data, which may be shared or under version control.

    Raises:
        UserError: there is no place for a cache at all.
    """
    if cache_dir:
        return [Path(files.local_path("cache_dir", cache_dir))]
    try:
        return [user_cache()]
    except OSError as error:
        raise UserError(
            f"SSL_JAX_CACHE: not set, and there is no other place for decoded images ({error}); "
            "takes a directory that can be written"
        ) from error


def load_or_build(
    roots: Sequence[Path],
    stem: str,
    source: str,
    shape: tuple[int, ...],
    decode: Callable[[], Iterator[Example]],
    fewer: bool = False,
) -> Arrays:
    """Return a split from the first root that has it whole, or decode it into a root.

    It is decoded into the first root that can be written.

    Args:
        roots: directories, first choice first.
        stem: path of the split below a root, without a suffix.
        source: what it is decoded from; a cache that says otherwise is rebuilt.
        shape: (N, H, W, C) of all images.
        decode: starts the decoding; yields N pairs of an (H, W, C) uint8 image and an int label.
        fewer: whether it may yield less than N pairs.

    Returns:
        image (N, H, W, C) uint8, mapped read-only from the file, and label (N,) int32.

    Raises:
        UserError: no root can be written.
    """
    for root in roots:
        if (arrays := read(root / stem, source, shape)) is not None:
            return arrays
    refusals: list[str] = []
    full: dict[int, OSError] = {}  # by device: the disk, or this user's share of it, is full
    for root in roots:
        try:
            device = files.nearest_existing(root).stat().st_dev
            if device in full:
                raise full[device]
            files.require_space(root, needed_bytes(shape))
            written = write(root / stem, source, shape, decode(), fewer)
            return _read(root / stem, source, written)
        except OSError as error:
            if error.errno in files.FULL:
                full[files.nearest_existing(root).stat().st_dev] = error
            refusals.append(f"{root} ({error.strerror or error})")
    takes = "a directory that can be written, with room for the decoded images"
    raise UserError(f"SSL_JAX_CACHE: got {' and '.join(refusals)}, takes {takes}")


def needed_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes on disk of a decoded split of `shape` (N, H, W, C), rounded up."""
    return math.prod(shape) + 4 * shape[0] + 4096  # pixels, labels, headers and the card


def source_digest(folder: Path, roots: Sequence[Path]) -> str:
    """Return `files_digest` of all files in `folder`, not of those in folders below it."""
    return files_digest([path for path in folder.iterdir() if path.is_file()], roots)


def files_digest(paths: Iterable[str | Path], roots: Sequence[Path]) -> str:
    """Return a digest of the names, below their common folder, and of the contents of files.

    A file is read again only when its size, inode or times have changed since its digest was
    remembered, in `sources/` of a root.

    Args:
        paths: of the files, in any order.
        roots: cache directories, first choice first.

    Returns:
        16 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    places = sorted({os.path.abspath(path) for path in paths})
    base = os.path.commonpath([os.path.dirname(place) for place in places]) if places else ""
    start = len(os.path.join(base, ""))
    name = hashlib.blake2b(os.fsencode(os.path.realpath(base)), digest_size=8).hexdigest()
    cards = [root / "sources" / f"{name}.json" for root in roots]
    known = {key: value for card in reversed(cards) for key, value in _remembered(card).items()}
    found = {place[start:]: _identity(place) for place in places}
    digests = {n: known[n][-1] for n in found if known.get(n, [None])[:-1] == found[n]}
    unknown = [name for name in found if name not in digests]
    size = sum(found[name][0] for name in unknown)
    parts = [unknown[start : start + GROUP] for start in range(0, len(unknown), GROUP)]
    with (
        progress_bar(size, 0, "B", f"reading {base}", delay=3) as bar,
        ThreadPoolExecutor(READERS, thread_name_prefix="digest") as pool,
    ):
        digest = functools.partial(_file_digests, base)
        for part, values in zip(parts, pool.map(digest, parts), strict=True):
            digests.update(zip(part, values, strict=True))
            bar.update(sum(found[name][0] for name in part))
    if unknown:
        late = time.time_ns() - RECENT * 1e9
        lasting = {n: [*found[n], digests[n]] for n in found if max(found[n][2:]) < late}
        # other sets may lie in the same folder
        others = {n: entry for n, entry in known.items() if n not in found}
        write_first(cards, json.dumps(others | lasting).encode())
    whole = hashlib.blake2b(digest_size=8)
    for name in found:
        whole.update(os.fsencode(name) + f" {digests[name]}\n".encode())
    return whole.hexdigest()


def _identity(path: str) -> list[int]:
    status = os.stat(path)
    # st_ctime_ns: no program can set it, so that a restored date hides no change
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _file_digests(folder: str, names: Sequence[str]) -> list[str]:
    return [_file_digest(os.path.join(folder, name)) for name in names]


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _remembered(card: Path) -> dict[str, list]:
    """Return {file name: [*_identity, digest]} of a card; {} where it cannot be read."""
    try:
        known = json.loads(card.read_text())
        return {
            name: entry
            for name, entry in known.items()
            if len(entry) == 5 and isinstance(entry[-1], str)
        }
    except Exception:  # whatever is wrong with it, the files are read again
        return {}


def write_first(places: Sequence[Path], content: bytes) -> Path | None:
    """Write the first of these files that can be written, and return it; None where none can."""
    for place in places:
        try:
            make_private(place.parent)
            with files.replacing(place) as file:
                file.write(content)
            return place
        except OSError:
            continue
    return None


def keep_index(
    roots: Sequence[Path], stem: str, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return small arrays about a set, such as names and labels, computed once and then read.

    Args:
        roots: cache directories, first choice first.
        stem: path of the file below a root, without a suffix; it has the digest of the set.
        compute: returns the arrays by name.

    Returns:
        The arrays by name.
    """
    places = [root / f"{stem}.npz" for root in roots]
    for place in places:
        try:
            if place.is_file():  # a pipe would be waited for
                with np.load(place, allow_pickle=False) as arrays:
                    return dict(arrays)
        except Exception as error:  # zipfile, zlib and NumPy each raise their own
            warn(f"{place}: damaged, the set is read again ({type(error).__name__})")
    arrays = compute()
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_first(places, content.getvalue())
    return arrays


def read(stem: Path, source: str, shape: tuple[int, ...]) -> Arrays | None:
    """Return the verified arrays of a split.

    Args:
        stem: path of the split, without a suffix.
        source: what it must have been decoded from.
        shape: (N, H, W, C) of all images.

    Returns:
        image (N, H, W, C) uint8 and label (N,) int32. None where there are none, or, with a
        warning, where they are damaged.
    """
    try:
        return _read(stem, source, shape)
    except Exception as error:  # whatever is wrong with a cache, decoding again repairs it
        # without a card there is no split: none was written, or not to its end
        if not isinstance(error, OSError) or os.path.lexists(_file(stem, "json")):
            warn(f"{stem}: the cache is damaged ({error}); decoding again")
        return None


def _read(stem: Path, source: str, shape: tuple[int, ...]) -> Arrays:
    for path in (_file(stem, suffix) for suffix in ("json", "image.npy", "label.npy")):
        if path.exists() and not path.is_file():
            raise ValueError(f"{path.name} is not a file")  # a pipe would be waited for
    card = json.loads(_file(stem, "json").read_text())
    image = np.load(_file(stem, "image.npy"), mmap_mode="r", allow_pickle=False).view(np.ndarray)
    label = np.load(_file(stem, "label.npy"), allow_pickle=False)
    if image.shape != shape or card != _card(source, image.shape, zlib.crc32(image.data), label):
        raise ValueError("its bytes are not what its card says")
    return image, label


def write(
    stem: Path,
    source: str,
    shape: tuple[int, ...],
    examples: Iterator[Example],
    fewer: bool = False,
) -> tuple[int, ...]:
    """Write a split to disk, one image in memory at a time, the card last.

    Args:
        stem: path of the split, without a suffix.
        source: what it is decoded from, for the card.
        shape: (N, H, W, C) of all images.
        examples: N pairs of an (H, W, C) uint8 image and an int label.
        fewer: whether they may be less than N.

    Returns:
        (N, H, W, C) of what was written.

    Raises:
        OSError: the files cannot be written.
        UserError: there are not N pairs.
    """
    make_private(stem.parent)
    labels: list[int] = []
    crc = 0
    with files.replacing(_file(stem, "image.npy")) as file:
        _write_header(file, shape)
        _reserve(file, math.prod(shape))
        for image, label in examples:
            pixels = image.tobytes()
            crc = zlib.crc32(pixels, crc)
            file.write(pixels)
            labels.append(label)
        if fewer and len(labels) < shape[0]:
            shape = len(labels), *shape[1:]
            file.truncate(file.tell())
            file.seek(0)
            _write_header(file, shape)  # numpy leaves room in it for any number
        if len(labels) != shape[0]:
            raise UserError(f"{source}: has {len(labels)} images, {shape[0]} are declared")
    label = np.asarray(labels, np.int32)
    with files.replacing(_file(stem, "label.npy")) as file:
        np.save(file, label)
    with files.replacing(_file(stem, "json")) as file:
        file.write(json.dumps(_card(source, shape, crc, label), indent=1).encode())
    return shape


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _card(source: str, shape: tuple[int, ...], crc: int, label: np.ndarray) -> dict:
    return {
        "source": source,
        "count": shape[0],
        "image": {"shape": list(shape), "dtype": "uint8", "crc32": crc},
        "label": {
            "shape": list(label.shape),
            "dtype": str(label.dtype),
            "crc32": zlib.crc32(label.tobytes()),
        },
    }


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserve `size` bytes from where the file stands: a quota that is too small shows here.

    Raises:
        OSError: there is no room.
    """
    if size and hasattr(os, "posix_fallocate"):
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), file.tell(), size)
        except OSError as error:
            if error.errno in files.FULL:
                why = f"{error.strerror}: {size:,} bytes needed"
                raise OSError(error.errno, why, file.name) from error


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")
