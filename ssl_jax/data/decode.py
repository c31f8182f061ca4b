"""Records to decoded splits in the cache, on all cores.

A picture that cannot be decoded is left out, and stands with its reason in `STEM.damaged.json`
beside the split. It is written before the split's own card: a split with fewer images than records
and without this list is decoded again.
"""

import functools
import hashlib
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image

from ssl_jax.data.cache import load_or_build, read, write_first
from ssl_jax.data.encoded import EncodedImages, damage_of
from ssl_jax.data.pictures import Header, read_header, read_image, read_pixels
from ssl_jax.data.records import Options, Records
from ssl_jax.errors import UserError
from ssl_jax.runtime.cache_directory import make_private
from ssl_jax.runtime.terminal import progress_bar
from ssl_jax.text import printable

# Seconds of decoding in this process; what takes longer is worth the start of others.
ALONE = 2.0
PART = 32  # records that a process decodes at a time
AHEAD = 16  # parts for each process between two meetings; they bound the memory
SAMPLE = 2000  # headers that are enough where sizes differ and there is colour

Row = tuple[np.ndarray, None] | tuple[None, str]  # pixels, or why there are none


class Damaged(NamedTuple):
    """A picture that cannot be decoded."""

    row: int  # place among the records of its split
    name: str
    reason: str


class Decoded(NamedTuple):
    """A split in memory."""

    image: np.ndarray  # (N, H, W, C) uint8, mapped read-only from the cache
    label: np.ndarray  # (N,) int32; -1 without a label
    damaged: list[Damaged]  # the records that are not among the N


class Look(NamedTuple):
    """What the headers of a set's pictures say."""

    size: tuple[int, int] | None  # width and height in pixels where all have the same
    shorter: int  # median of the shorter sides, in pixels
    channels: int  # 1 where all are grey, else 3
    without_white: int  # pictures of 32-bit integers or floats, of those that were looked at


# --- Pixels ---------------------------------------------------------------------------------------


def decode_records(
    records: Records,
    shape: tuple[int, int, int],
    options: Options,
    roots: Sequence[Path],
    place: tuple[str, str, str],
) -> Decoded:
    """Return a split, decoded once and read from the cache afterwards.

    Args:
        records: of the split, at least one.
        shape: (H, W, C) of every image.
        options: fields of `data`; `fit` and `background` decide pixels.
        roots: cache directories, first choice first.
        place: name of the set and of the split, and the digest of what it is decoded from.

    Returns:
        The images in the order of the records, without the damaged ones.

    Raises:
        UserError: no root can be written, or no picture can be decoded.
    """
    name, split, digest = place
    colour = "-".join(map(str, options.background))
    source = f"{name} {digest} {'x'.join(map(str, shape))} {options.fit} {colour}"
    marked = _hash_of_names(records)  # and of the labels: a draw chooses both
    label = labels_of(records)
    marked.update(label.tobytes())
    source = f"{source} {marked.hexdigest()}"
    stem = f"{name}-{digest}-{options.fit}/{split}-{shape[0]}x{shape[2]}-{marked.hexdigest()}"
    count, damaged = len(records.names), _read_damaged(roots, stem, source)
    if damaged:
        for root in roots:
            arrays = read(root / stem, source, (count - len(damaged), *shape))
            if arrays is not None:
                return Decoded(*arrays, damaged)
    damaged = []

    def decode() -> Iterator[tuple[np.ndarray, int]]:
        job = functools.partial(decode_row, records.read, shape, options.fit, options.background)
        damaged.clear()
        with progress_bar(count, 0, "image", f"decoding {name} {split}") as bar:
            for row, (pixels, reason) in enumerate(in_order(job, count, roots)):
                if pixels is None:
                    damaged.append(Damaged(row, records.names[row], str(reason)))
                else:
                    yield pixels, int(label[row])
                bar.update()
        if len(damaged) == count:
            raise none_decodes(damaged)
        if damaged:
            content = json.dumps({"source": source, "damaged": damaged}, indent=1)
            write_first([root / _damage_card(stem) for root in roots], content.encode())

    arrays = load_or_build(roots, stem, source, (count, *shape), decode, fewer=True)
    return Decoded(*arrays, damaged)


def keep_encoded(
    records: Records,
    shape: tuple[int, int, int],
    options: Options,
    roots: Sequence[Path],
    place: tuple[str, str, str],
) -> Decoded:
    """Return a split whose images are decoded when they are asked for, see `encoded`.

    Args:
        records, shape, options, roots, place: as `decode_records` takes them.

    Returns:
        The images without the damaged ones, which were found in one pass over all.
    """
    name, _, digest = place
    colour = {"fit": options.fit, "background": options.background}
    decode = functools.partial(read_image, shape=shape, **colour)
    images = EncodedImages(records, decode, shape, f"{name} {digest} {colour}")
    damaged = [Damaged(row, records.names[row], why) for row, why in images.damaged(roots)]
    if len(damaged) == len(records.names):
        raise none_decodes(damaged)
    label = labels_of(records)
    if damaged:
        sound = np.delete(np.arange(len(label)), [entry.row for entry in damaged])
        images, label = images.select(sound), label[sound]
    return Decoded(cast(np.ndarray, images), label, damaged)


def none_decodes(damaged: Sequence[Damaged]) -> UserError:
    """Return the line for a split of which every picture is damaged."""
    return UserError(
        f"data.data_dir: none of the {len(damaged)} pictures can be decoded, the first is "
        f"{printable(damaged[0].name)} ({printable(damaged[0].reason)}); takes sound pictures"
    )


def _hash_of_names(records: Records) -> "hashlib.blake2b":
    """Return the hash of the names in their order, to which more can be added."""
    marked = hashlib.blake2b(digest_size=8)
    for name in records.names:
        marked.update(name.encode(errors="surrogateescape") + b"\0")
    return marked


def labels_of(records: Records) -> np.ndarray:
    """Return the labels (N,) int32, -1 where there are none."""
    if records.labels is None:
        return np.full(len(records.names), -1, np.int32)
    return np.asarray(records.labels, np.int32)


def lines_of(damaged: Sequence[Damaged]) -> list[str]:
    """Return damaged pictures with their reasons, "NAME: REASON"."""
    return [f"{printable(entry.name)}: {printable(entry.reason)}" for entry in damaged]


def keep_list(damaged: Sequence[Damaged], digest: str, roots: Sequence[Path]) -> Path | None:
    """Write the list of damaged pictures of a set into a cache root.

    Args:
        damaged: of all splits.
        digest: of the contents of the set.
        roots: cache directories, first choice first.

    Returns:
        The file; None where none can be written.
    """
    text = "\n".join([*lines_of(damaged), ""])
    return write_first([root / f"damaged/{digest}.txt" for root in roots], text.encode())


def decode_row(
    read: Callable, shape: tuple[int, int, int], fit: str, background: tuple, row: int
) -> Row:
    """Return the pixels of a record, or what is wrong with it; it can be pickled.

    Args:
        read: of `Records`.
        shape, fit, background: as `pictures.read_image` takes them.
        row: place of the record.

    Returns:
        The pixels (H, W, C) uint8 and None; or None and the reason why there are none.
    """
    try:
        return read_image(read(row), shape, fit, background), None
    except Exception as error:  # of the picture, its file, or the archive that it is in
        return None, damage_of(error)


def small_row(read: Callable, size: int, background: tuple[int, int, int], row: int) -> np.ndarray:
    """Return a whole picture in colour, made small; it can be pickled.

    Args:
        read: of `Records`.
        size: most pixels of a side; a smaller picture stays as it is.
        background: red, green and blue, 0..255, under transparent pixels.
        row: place of the record.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(read_pixels(read(row), 3, None, background=background))
    picture.thumbnail((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _read_damaged(roots: Sequence[Path], stem: str, source: str) -> list[Damaged]:
    """Return the damaged pictures of a split that was decoded; [] where none are known."""
    for root in roots:
        try:
            content = json.loads((root / _damage_card(stem)).read_bytes())
            if content["source"] == source:
                return [Damaged(*entry) for entry in content["damaged"]]
        except Exception:  # no list, or none that can be read: the split is decoded again
            continue
    return []


def _damage_card(stem: str) -> str:
    return f"{stem}.damaged.json"


# --- Headers --------------------------------------------------------------------------------------


def look(records: Records, digest: str, roots: Sequence[Path]) -> Look:
    """Return what the headers of the pictures say; kept in a cache root.

    It is kept by the digest and the records' names: the digest is of all files of the set, of which
    `records` may be some. Of many pictures a sample is looked at first, spread evenly. It is enough
    where it has several sizes and colour. A damaged header counts as none.

    Args:
        records: of all splits.
        digest: of the contents.
        roots: cache directories, first choice first.

    Raises:
        UserError: no picture has a sound header.
    """
    marked = _hash_of_names(records)
    marked.update(digest.encode())
    name = marked.hexdigest()
    for root in roots:
        try:
            size, *numbers = json.loads((root / "headers" / f"{name}.json").read_bytes())
            return Look(tuple(size) if size else None, *map(int, numbers))
        except Exception:  # whatever is wrong with it, the headers are read again
            continue
    count = len(records.names)
    some = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int))
    found = _summary([_header_row(records.read, row) for row in some])
    if len(some) < count and (found is None or found.size or found.channels == 1):
        job = functools.partial(_header_row, records.read)
        with progress_bar(count, 0, "image", "reading headers", delay=3) as bar:
            headers = []
            for header in in_order(job, count, roots):
                headers.append(header)
                bar.update()
        found = _summary(headers)
    if found is None:
        raise UserError(
            f"data.data_dir: none of the {count} pictures can be read, the first is "
            f"{printable(records.names[0])}; takes sound pictures"
        )
    write_first([root / f"headers/{name}.json" for root in roots], json.dumps(found).encode())
    return found


def _header_row(read: Callable, row: int) -> Header | None:
    try:
        return read_header(read(row))
    except Exception:  # a damaged picture, which decoding tells
        return None


def _summary(headers: Sequence[Header | None]) -> Look | None:
    """Return what the headers have in common; None without any."""
    sound = [header for header in headers if header is not None]
    if not sound:
        return None
    sizes = {(header.width, header.height) for header in sound}
    shorter = int(np.median([min(header.width, header.height) for header in sound]))
    grey = all(header.channels == 1 for header in sound)
    size = sizes.pop() if len(sizes) == 1 else None
    return Look(size, shorter, 1 if grey else 3, sum(not header.has_white for header in sound))


# --- Processes ------------------------------------------------------------------------------------


def in_order(job: Callable[[int], object], count: int, roots: Sequence[Path]) -> Iterator:
    """Yield job(0) to job(count - 1), after a while from all cores.

    The processes are fresh ones (fork and exec): none inherits JAX, its threads or its locks.

    Args:
        job: a function that can be pickled.
        count: of calls.
        roots: directories, of which one holds the pickled job for the processes.
    """
    from joblib import cpu_count

    begin, row = time.monotonic(), 0
    cores = cpu_count()
    while row < count:
        spent = time.monotonic() - begin
        if cores > 1 and spent > ALONE and spent * (count - row) > ALONE * row:
            break
        yield job(row)
        row += 1
    if row < count:
        yield from _on_all_cores(job, row, count, cores, roots)


def _on_all_cores(
    job: Callable[[int], object], start: int, count: int, cores: int, roots: Sequence[Path]
) -> Iterator:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    parts = [(first, min(first + PART, count)) for first in range(start, count, PART)]
    block = AHEAD * cores
    with tempfile.NamedTemporaryFile(suffix=".job", dir=_scratch(roots)) as file:
        pickle.dump(job, file, protocol=pickle.HIGHEST_PROTOCOL)
        file.flush()
        pool = Parallel(cores, backend="loky", return_as="generator", pre_dispatch="all")
        try:
            with pool:
                for first in range(0, len(parts), block):
                    block_parts = parts[first : first + block]
                    calls = (delayed(_run_part)(file.name, *part) for part in block_parts)
                    for results in cast(Iterator[list], pool(calls)):
                        yield from results
        finally:
            # The processes would wait five minutes for more to do, and their semaphores for the
            # garbage collector, which Python 3.12 may call where it cannot remove them.
            get_reusable_executor().shutdown()


def _scratch(roots: Sequence[Path]) -> Path | None:
    """Return the first root that can hold a file; None for the system's place."""
    for root in roots:
        try:
            make_private(root)
            with tempfile.TemporaryFile(dir=root):
                return root
        except OSError:
            continue
    return None


@functools.lru_cache(maxsize=1)
def _job(path: str) -> Callable[[int], object]:
    with open(path, "rb") as file:
        return pickle.load(file)


def _run_part(path: str, start: int, stop: int) -> list:
    job = _job(path)
    return [job(row) for row in range(start, stop)]
