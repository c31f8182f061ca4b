"""A folder of pictures, at any depth, as a set.

Names are sorted as bytes, so that the order depends on no locale and no file system. A link to a
folder is followed once: pictures of a folder that is reached again, as in a loop, are passed over.

Two things are kept in a cache root. The index (which pictures there are) holds as long as no
folder's time of change does, since making, deleting and renaming all set it. The digest of the
contents (`cache.files_digest`) reads a file again only where its size, inode or times changed.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_jax import files
from ssl_jax.data.cache import RECENT, files_digest, write_first
from ssl_jax.data.labels import (
    KINDS,
    Classes,
    classes_of_table,
    count,
    find_classes,
    listed,
    read_table,
)
from ssl_jax.data.records import Options, RawSet, Records, join, part
from ssl_jax.data.shards import WORDS
from ssl_jax.errors import UserError, nearest
from ssl_jax.text import printable

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .tif .tiff .webp .avif .jp2 .j2k .ppm .pgm "
    ".pbm .pnm .pcx .tga .sgi .ico".split()
)
USUAL = ".jpg, .png, .webp, .tif, .gif and .bmp"  # for messages
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
LEFT = {"__macosx", "thumbs.db", "desktop.ini", "ssl_jax_cache"}  # by other programs, and this one
VERSION = 1  # of the index on disk


class Index(NamedTuple):
    """The files below a folder. Paths are strings with "/", sorted as bytes."""

    pictures: list[str]
    others: list[str]  # files that are no pictures, and links that lead nowhere
    # [path, time of change] of every folder, the topmost first as ""
    folders: list[list]


def open_folder(data_dir: str, options: Options, roots: Sequence[Path]) -> RawSet:
    """Return the pictures below a folder, as a set; none of them is decoded.

    Every picture at any depth is for training. Where there is a folder `train/`, only what lies
    below it is; what lies below `test/`, else `validation/`, is the test split, and below
    `unlabelled/` are further images for pretraining. `shards.WORDS` has the other names of these.

    Args:
        data_dir: the folder.
        options: fields of `data`.
        roots: cache directories, first choice first.

    Returns:
        The set.

    Raises:
        UserError: no picture, none for training, a folder or file that cannot be read, or labels
            that do not fit.
    """
    base = Path(data_dir)
    try:
        index = read_index(base, roots)
        splits = _split(base, index, options.test_split)
        paths = [os.path.join(base, name) for names in splits.values() for name in names]
        digest = files_digest(paths, roots)
    except OSError as error:
        where = error.filename if error.filename is not None else data_dir
        raise UserError(
            f"data.data_dir: {os.fsdecode(where)} cannot be read ({files.reason(error)}); takes "
            "folders and files that can be read"
        ) from error
    unlabelled = [name for top in splits if _word(top) == "unlabelled" for name in splits[top]]
    labelled = {top: names for top, names in splits.items() if _word(top) != "unlabelled"}
    classes = _classes(options.labels, labelled)
    labels = classes.labels or [None] * len(labelled)
    train, *tests = (
        Records(names, functools.partial(_read, data_dir, names), label)
        for names, label in zip(labelled.values(), labels, strict=True)
    )
    more = Records(unlabelled, functools.partial(_read, data_dir, unlabelled), None)
    if train.labels is not None:
        if (train.labels < 0).any():  # a table has no label of theirs
            more = join(part(train, np.flatnonzero(train.labels < 0)), more)
            train = part(train, np.flatnonzero(train.labels >= 0))
        tests = [part(test, np.flatnonzero(_known(test.labels))) for test in tests]
        digest = _with_labels(digest, classes)
    test = tests[0] if tests and tests[0].names else None
    found = _found(base, index, labelled, unlabelled, classes)
    return RawSet(train, test, more if more.names else None, classes.names, found, digest)


def read_index(base: Path, roots: Sequence[Path]) -> Index:
    """Return the index of a folder, from the cache where it holds.

    Args:
        base: the folder.
        roots: cache directories, first choice first.

    Raises:
        OSError: a folder cannot be read.
    """
    name = hashlib.blake2b(os.fsencode(base.resolve()), digest_size=8).hexdigest()
    cards = [root / "folders" / f"{name}.json" for root in roots]
    for card in cards:
        if (index := _kept(card, base)) is not None:
            return index
    index = walk(base)
    late = time.time_ns() - RECENT * 1e9
    if all(max(times) < late for _, _, *times in index.folders):
        write_first(cards, json.dumps({"version": VERSION, **index._asdict()}).encode())
    return index


def walk(base: Path) -> Index:
    """Return the index of a folder from the disk.

    Raises:
        OSError: a folder cannot be read.
    """
    pictures, others, folders = [], [], []
    seen: set[tuple[int, int]] = set()
    pending, links = [""], []
    while pending or links:
        # folders before links, and links in their order: which of several names of one folder is
        # taken depends on no order of the file system
        if not pending:
            links.sort(key=os.fsencode)
            pending.append(links.pop(0))
        below = pending.pop()
        place = os.path.join(base, below)
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.append([below, *_times(status)])
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in LEFT:
                    continue
                path = f"{below}/{entry.name}" if below else entry.name
                linked = entry.is_symlink()  # perhaps to itself, where `entry` would raise
                if os.path.isdir(entry.path) if linked else entry.is_dir():
                    (links if linked else pending).append(path)
                elif (os.path.isfile(entry.path) if linked else entry.is_file()) and _is_picture(
                    entry
                ):
                    pictures.append(path)
                else:
                    others.append(path)
    for names in (pictures, others):
        names.sort(key=os.fsencode)
    return Index(pictures, others, folders)


def _times(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _kept(card: Path, base: Path) -> Index | None:
    """Return the index on a card; None where there is none, or a folder has changed since."""
    try:
        content = json.loads(card.read_bytes())
        if content.pop("version") != VERSION:
            return None
        index = Index(**content)
        holds = all(
            times == _times(os.stat(os.path.join(base, below))) for below, *times in index.folders
        )
        return index if holds else None
    except Exception:  # whatever is wrong with it, the folder is read again
        return None


def _is_picture(entry: os.DirEntry) -> bool:
    """Return whether a file is a picture: by the end of its name, or its first bytes without."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix:
        return suffix in SUFFIXES
    try:
        with open(entry.path, "rb") as file:
            return file.read(12).startswith(STARTS)
    except OSError:
        return False


def _split(base: Path, index: Index, test_split: str) -> dict[str, list[str]]:
    """Return the names of the pictures of each split by its folder, training first.

    The training folder is "" where every picture is for training.
    """
    pictures = index.pictures
    if not pictures:
        but = f", but {_passed_over(index.others)}" if index.others else ""
        raise UserError(
            f"data.data_dir: {printable(base)} holds no picture{but}; takes a folder with {USUAL} "
            "files, at any depth"
        )
    tops: dict[str, list[str]] = {}
    for name in pictures:
        top, slash, _ = name.partition("/")
        tops.setdefault(top if slash else "", []).append(name)
    test = _test_folder(base, tops, test_split) if test_split else ""
    train = _only(base, tops, "train")
    if not train:
        held = {test: tops[test]} if test else {}
        rest = [top for top in tops if top not in held]
        words = {_word(top) for top in rest}
        if words <= {"test", "validation", "unlabelled"} and words != {"unlabelled"}:
            raise UserError(
                f"data.data_dir: {printable(base)} has pictures of splits alone, below "
                f"{listed(sorted(tops))}, and none for training; takes a folder train beside them, "
                "or the path of one of them"
            )
        return {"": [name for name in pictures if name.split("/", 1)[0] not in held], **held}
    test = test or _only(base, tops, "test") or _only(base, tops, "validation")
    more = [top for top in tops if _word(top) == "unlabelled"]
    return {top: tops[top] for top in (train, test, *more) if top}


def _word(top: str) -> str:
    """Return the split that a folder is called after: "train", "test", ...; "" for none."""
    return WORDS.get(top.lower(), "")


def _only(base: Path, tops: Iterable[str], word: str) -> str:
    """Return the folder of a split, "" where there is none; UserError where there are several."""
    found = sorted(top for top in tops if _word(top) == word)
    if len(found) > 1:
        chosen = "" if word == "train" else ", or data.test_split, which names one"
        raise UserError(
            f"data.data_dir: {printable(base)} has several folders of the split {word}, "
            f"{listed(found)}; takes one{chosen}"
        )
    return found[0] if found else ""


def _test_folder(base: Path, tops: Iterable[str], asked: str) -> str:
    """Return the folder that data.test_split names, as it is or by another word for the split."""
    others = [top for top in tops if top and _word(top) not in ("train", "unlabelled")]
    found = asked if asked in others else ""
    if not found and (word := _word(asked)) not in ("", "train", "unlabelled"):
        found = _only(base, others, word)
    if not found:
        raise UserError(
            f"data.test_split: got {asked!r}, {printable(base)} has no pictures for the test below "
            f"such a folder; {nearest(asked, others)}"
        )
    return found


def _classes(value: str, splits: dict[str, list[str]]) -> Classes:
    """Return the classes of the splits as data.labels has them."""
    if value not in KINDS:
        return classes_of_table(value, read_table(value), splits)
    below = {
        split: [name[len(split) + 1 if split else 0 :] for name in names]
        for split, names in splits.items()
    }
    return find_classes(value, below)


def _known(labels: np.ndarray | None) -> np.ndarray:
    return np.zeros(0, bool) if labels is None else labels >= 0


def _with_labels(digest: str, classes: Classes) -> str:
    """Return a digest of contents and labels: a table's labels are contents, too."""
    whole = hashlib.blake2b(digest.encode(), digest_size=8)
    for label in classes.labels or []:
        whole.update(label.tobytes())
    return whole.hexdigest()


def _read(data_dir: str, names: Sequence[str], row: int) -> bytes:
    with open(os.path.join(data_dir, names[row]), "rb") as file:
        return file.read()


def _found(
    base: Path,
    index: Index,
    labelled: dict[str, list[str]],
    unlabelled: list[str],
    classes: Classes,
) -> str:
    """Return what was found, in one line."""
    parts = [f"{count(len(names), 'picture')}{_below(split)}" for split, names in labelled.items()]
    if unlabelled:
        parts.append(f"{count(len(unlabelled), 'picture')} for pretraining alone")
    line = f"{printable(base)}: {', '.join(parts)}; {classes.found}"
    chosen = sum(map(len, labelled.values())) + len(unlabelled)
    if left := len(index.pictures) - chosen:
        line += f"; passed over {count(left, 'picture')} in other folders"
    return f"{line}; passed over {_passed_over(index.others)}" if index.others else line


def _below(split: str) -> str:
    return f" in {printable(split)}/" if split else ""


def _passed_over(others: Sequence[str]) -> str:
    """Return how many files are no pictures, of which kinds, and the first of them."""
    kinds: dict[str, int] = {}
    for name in others:
        kind = os.path.splitext(name)[1].lower() or "without a suffix"
        kinds[kind] = kinds.get(kind, 0) + 1
    common = sorted(kinds, key=lambda kind: (-kinds[kind], kind))[:3]
    shown = ", ".join(f"{kinds[kind]} {printable(kind)}" for kind in common)
    what = "file that is no picture" if len(others) == 1 else "files that are no pictures"
    return f"{len(others)} {what} ({shown}): {listed(others)}"
