"""Tar files of images, as WebDataset lays them out, read in place: nothing is unpacked or decoded.

`KEY.jpg` (or another picture) is an image; `KEY.cls` or `KEY.json` beside it holds its label. A key
is all before the first dot of a member's name, with its directories.
"""

import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssl_jax.data.labels import check_labels
from ssl_jax.data.records import Options, RawSet
from ssl_jax.data.shards import (
    LABELS,
    Label,
    Part,
    Reader,
    by_split,
    cached_index,
    digest_of,
    find_files,
    raw_set,
)
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import progress_bar

TAKES = "a .tar file, or a directory of them"
PICTURES = "avif bmp gif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp".split()
UNPACK = {  # endings of compressed tar files -> the program that unpacks them
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.bz2", ".tbz2", ".tbz"), "bunzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
MAGIC = {  # first bytes of compressed files
    b"\x1f\x8b": ".tar.gz",
    b"BZh": ".tar.bz2",
    b"\xfd7zXZ": ".tar.xz",
    b"\x28\xb5\x2f\xfd": ".tar.zst",
}
KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
LONGEST = 16 << 20  # bytes of a label's member
VERSION = 1  # of the index
DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error)


def open_tar(data_dir: str, options: Options, roots: Sequence[Path]) -> RawSet:
    """Return the images of tar files, undecoded.

    A file's name, or the directories above it, tell its split. The index of all members is kept in
    the cache. A label of -1 is none.

    Args:
        data_dir: a directory with the files at any depth, or one file.
        options: what the configuration asks for.
        roots: cache directories, for digests and the index.

    Returns:
        The set, in the order of the files' names and of their members.

    Raises:
        UserError: no files, damaged or compressed ones, keys with several images or labels.
    """
    check_labels(options.labels, "tar")
    place, names = find_files(data_dir, (".tar", *UNPACK), TAKES)
    for name in names:
        _check_plain(place / name)
    splits = by_split(names)
    digest = digest_of([place / name for name in names], roots)
    shards = cached_index(roots, f"tar-{VERSION}-{digest}", lambda: _index(place, names))
    index = dict(zip(names, shards, strict=True))
    parts = {split: _part(place, files, index, options) for split, files in splits.items()}
    what = f"{len(names)} tar file{'s' if len(names) > 1 else ''}"
    left = sum(index[name]["left"] for name in names)
    what += f" ({left} other pictures of the same keys passed over)" if left else ""
    return raw_set(parts, options, what, "the members beside them", (), digest)


class ReadMembers(Reader):
    """Read the bytes of a member, from where the index says that it lies."""

    def __init__(self, paths: Sequence[str], file: np.ndarray, where: np.ndarray) -> None:
        super().__init__()
        self.paths = list(paths)
        self.file = file  # (N,) int32: number of the path
        self.where = where  # (N, 2) int64: offset and size in bytes

    def __call__(self, i: int) -> bytes:
        path, (offset, size) = self.paths[self.file[i]], map(int, self.where[i])
        with self._open() as held:
            if held.get("path") != path:
                self._close()
                held |= {"path": path, "file": Path(path).open("rb")}
            held["file"].seek(offset)
            content = held["file"].read(size)
        if len(content) != size:
            raise ValueError(f"{path} is shorter than it was")
        return content


def members(archive: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size in bytes of each regular file of an archive, none hidden."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # a million of them fill the memory
        if member.isreg() and not member.issparse() and (name := _shown(member.name)):
            yield name, member.offset_data, member.size


def _shown(name: str) -> str:
    """Return a member's name without "." and empty parts; "" for what is hidden."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    hidden = any(part[0] == "." or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)


def _members(file: BinaryIO, archive: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """Yield what `members` does of a plain file, some ten times as fast.

    Headers of regular files are read here, all others by `tarfile`.
    """
    offset = 0
    archive.firstmember = None  # type: ignore[attr-defined]  # `next` starts at `offset`
    while True:
        header = os.pread(file.fileno(), 512, offset)
        if found := _plain_header(header):
            name, size = found
            offset += 512
            start, offset = offset, offset + (size + 511) // 512 * 512
        else:
            archive.offset = offset  # type: ignore[attr-defined]
            file.seek(offset)  # else `next` looks for the block before, which is not there at 0
            if (member := archive.next()) is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]
            offset, start, size = archive.offset, member.offset_data, member.size  # type: ignore
            name = member.name if member.isreg() and not member.issparse() else ""
        if name := _shown(name):
            yield name, start, size
    if os.pread(file.fileno(), 512, offset) != bytes(
        512
    ):  # the end mark, after the whole last member
        raise ValueError("it stops before its end")


def _plain_header(header: bytes) -> tuple[str, int] | None:
    """Return name and size that the header of a regular file says; None for any other block."""
    if header[156:157] != b"0" or header[257:262] != b"ustar":
        return None
    try:
        size, check = int(header[124:136].strip(b" \0"), 8), int(header[148:156].strip(b" \0"), 8)
    except ValueError:  # a size of more than 8 GiB, or damage
        return None
    if check != sum(header) - sum(header[148:156]) + 8 * 32:
        return None
    name = header[:100].partition(b"\0")[0]
    if header[262:263] == b"\0" and header[345:346] != b"\0":  # POSIX: the name's beginning
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape"), size


def _check_plain(path: Path) -> None:
    """Raise UserError where a tar file is compressed: it has no members to be read by place."""
    name = path.name.lower()
    kind = next((end for end in UNPACK if name.endswith(end)), "")
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); takes {TAKES}") from error
    kind = kind or next((end for magic, end in MAGIC.items() if begin.startswith(magic)), "")
    if kind:
        as_named = f"{UNPACK[kind]} {path}"
        piped = f"{UNPACK[kind]} -c {path} > NEW.tar"
        raise UserError(
            f"{path}: is compressed, takes a plain .tar, which can be read at any place: "
            f"{as_named if name.endswith(tuple(UNPACK)) else piped}"
        )


def _index(place: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the index of each shard, in the order of the names."""
    size = sum((place / name).stat().st_size for name in names)
    index: list[dict[str, Any]] = []
    with progress_bar(size, 0, "B", f"indexing {place}", delay=3) as bar:
        for name in names:
            path = place / name
            try:
                index.append(_shard(path))
            except UserError:
                raise
            except DAMAGED as error:
                raise UserError(
                    f"{path}: truncated or damaged ({error}); takes a whole tar file"
                ) from error
            bar.update(path.stat().st_size)
    return index


def _shard(path: Path) -> dict[str, Any]:
    """Return the pictures of a shard: names, offsets and sizes in bytes, labels.

    A label is an integer, a text, None, or {"wrong": why} where it cannot be one. `left` counts the
    pictures that share a key with the one that is taken.
    """
    found: dict[str, dict[str, tuple[str, int, int]]] = {}
    with path.open("rb") as file:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for name, offset, size in _members(file, archive):
                if not (match := KEY.fullmatch(name)):
                    continue
                key, end = match[1], match[2].lower()
                if end in found.setdefault(key, {}):
                    raise UserError(f"{path}: has two members {name}, takes one")
                found[key][end] = (name, offset, size)
        names, where, labels, left = [], [], [], 0
        for key, ends in found.items():
            if not (picture := _picture(path, key, ends)):
                continue
            name, *place = ends[picture]
            names.append(name)
            where.append(place)
            labels.append(_label(file, ends))
            left += sum(_is_picture(end) for end in ends) - 1
    return {"names": names, "where": where, "labels": labels, "left": left}


def _is_picture(end: str) -> bool:
    return end.rpartition(".")[2] in PICTURES


def _picture(path: Path, key: str, ends: dict[str, tuple[str, int, int]]) -> str | None:
    """Return the ending of a key's picture: KEY.png, else the only one as in KEY.left.png."""
    pictures = [end for end in ends if _is_picture(end)]
    plain = [end for end in pictures if end in PICTURES] or pictures
    if len(plain) > 1:
        both = " and ".join(ends[end][0] for end in plain[:2])
        raise UserError(
            f"{path}: the key {key} has several pictures, {both}; takes one a key, which is all "
            "before the first dot of a name"
        )
    return plain[0] if plain else None


def _label(file: Any, ends: dict[str, tuple[str, int, int]]) -> Label | dict[str, str]:
    """Return the label beside a picture, as `_shard` has it."""
    for end in ("cls", "json"):
        if end not in ends:
            continue
        name, offset, size = ends[end]
        if size > LONGEST:
            return {"wrong": f"{name} is larger than a label"}
        file.seek(offset)
        try:
            text = file.read(size).decode().strip()
            value = json.loads(text) if end == "json" else text
        except (ValueError, RecursionError):
            return {"wrong": f"{name} cannot be read as {'JSON' if end == 'json' else 'text'}"}
        if end == "json":
            fields = value if isinstance(value, dict) else {}
            value = next((fields[field] for field in LABELS if field in fields), None)
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
            value = int(value)
        if not (value is None or isinstance(value, int | str)):
            return {"wrong": f"{name} has {str(value)[:40]!r}, takes an integer or a text"}
        return value
    return None


def _part(place: Path, files: Sequence[str], index: dict[str, Any], options: Options) -> Part:
    """Return the images of these shards."""
    names: list[str] = []
    labels: list[Any] = []
    for name in files:
        names += [f"{name}#{member}" for member in index[name]["names"]]
        labels += index[name]["labels"]
    wrong = [(n, label) for n, label in zip(names, labels, strict=True) if isinstance(label, dict)]
    if wrong and options.labels == "auto":
        shard = wrong[0][0].partition("#")[0]
        raise UserError(
            f"{place / shard}: {wrong[0][1]['wrong']} ({len(wrong)} labels of this kind; "
            "data.labels=none does without labels)"
        )
    counts = [len(index[name]["names"]) for name in files]
    where = [place for name in files for place in index[name]["where"]]
    file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    paths = [os.fspath(place / name) for name in files]
    read = ReadMembers(paths, file, np.array(where, np.int64).reshape(-1, 2))
    return Part(names, read, labels if options.labels == "auto" else None)
