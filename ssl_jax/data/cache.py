"""Decoded splits on disk: uint8 images and int32 labels as `.npy`, with checksums.

A split is three files: `STEM.image.npy`, `STEM.label.npy` and, written last, `STEM.json` (shapes,
types and CRC-32 of the bytes, and what they were decoded from). Each appears by `os.replace`, so
any number of processes may build the same split at once: they write the same bytes, and nobody sees
a half-written file.
"""

import json
import os
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.runtime.cache_directory import user_cache

Example = tuple[np.ndarray, int]
Arrays = tuple[np.ndarray, np.ndarray]


def cache_roots(data_dir: str | None, cache_dir: str | None) -> list[Path]:
    """Return the directories that may hold decoded splits, first choice first.

    An explicit `cache_dir`, else `$SSL_JAX_CACHE`, is the only place. Without either: beside the
    data where that can be written, then the user's cache directory.
    """
    if cache_dir:
        return [Path(cache_dir).expanduser()]
    if data_dir and not os.environ.get("SSL_JAX_CACHE") and _writable(data_dir):
        return [Path(data_dir) / "ssl_jax_cache", user_cache()]
    return [user_cache()]


def _writable(folder: str) -> bool:
    # `os.access` says yes to root whatever the mode: honour a directory that its owner marked
    # read-only.
    return os.access(folder, os.W_OK) and bool(os.stat(folder).st_mode & 0o222)


def load_or_build(
    roots: Sequence[Path],
    stem: str,
    source: str,
    shape: tuple[int, ...],
    decode: Callable[[], Iterator[Example]],
) -> Arrays:
    """Return a split from the first root that has it whole, or decode it into a root.

    It is decoded into the first root that can be written.

    Args:
        roots: directories, first choice first.
        stem: path of the split below a root, without a suffix.
        source: what it is decoded from; a cache that says otherwise is rebuilt.
        shape: (N, H, W, C) of all images.
        decode: starts the decoding; yields N pairs of an (H, W, C) uint8 image and an int label.

    Returns:
        image (N, H, W, C) uint8, mapped read-only from the file, and label (N,) int32.

    Raises:
        UserError: no root can be written.
    """
    for root in roots:
        if (arrays := read(root / stem, source, shape)) is not None:
            return arrays
    refusals = []
    for root in roots:
        try:
            write(root / stem, source, shape, decode())
            return _read(root / stem, source, shape)
        except OSError as error:
            refusals.append(f"{root} ({error.strerror or error})")
    takes = "a directory that can be written, with room for the decoded images"
    raise UserError(f"SSL_JAX_CACHE: got {' and '.join(refusals)}, takes {takes}")


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
    if not _file(stem, "json").exists():
        return None
    try:
        return _read(stem, source, shape)
    except Exception as error:  # whatever is wrong with a cache, decoding again repairs it
        print(f"warning: {stem}: the cache is damaged ({error}); decoding again", file=sys.stderr)
        return None


def _read(stem: Path, source: str, shape: tuple[int, ...]) -> Arrays:
    card = json.loads(_file(stem, "json").read_text())
    image = np.load(_file(stem, "image.npy"), mmap_mode="r", allow_pickle=False).view(np.ndarray)
    label = np.load(_file(stem, "label.npy"), allow_pickle=False)
    if image.shape != shape or card != _card(source, image.shape, zlib.crc32(image.data), label):
        raise ValueError("its bytes are not what its card says")
    return image, label


def write(stem: Path, source: str, shape: tuple[int, ...], examples: Iterator[Example]) -> None:
    """Write a split to disk, one image in memory at a time, the card last.

    Args:
        stem: path of the split, without a suffix.
        source: what it is decoded from, for the card.
        shape: (N, H, W, C) of all images.
        examples: N pairs of an (H, W, C) uint8 image and an int label.

    Raises:
        OSError: the files cannot be written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    labels, crc = [], 0
    with _replacing(_file(stem, "image.npy")) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for image, label in examples:
            pixels = image.tobytes()
            crc = zlib.crc32(pixels, crc)
            file.write(pixels)
            labels.append(label)
    label = np.asarray(labels, np.int32)
    with _replacing(_file(stem, "label.npy")) as file:
        np.save(file, label)
    with _replacing(_file(stem, "json")) as file:
        file.write(json.dumps(_card(source, shape, crc, label), indent=1).encode())


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


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` when the block ends well, and is removed otherwise."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
