"""Attacks by the system: caches, links, leases, full disks."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from ssl_jax.data.cache import load_or_build, source_digest
from ssl_jax.errors import UserError
from ssl_jax.probes.features import cached_features
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import save
from ssl_jax.runtime import lease
from ssl_jax.runtime.cache_directory import is_private_file, private_folder, weakness
from ssl_jax.runtime.compilation_cache import delete_foreign
from ssl_jax.tasks.sweep import write_failure
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.directory import begin_workdir, write_json
from ssl_jax.workdir.dynamics_npz import write_dynamics
from ssl_jax.workdir.lock import NAME, locked

from .suite import Named, Place, contents, damaged, group, same_tree, second_start

NOBODY = 65534
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0

# --- What stands in the place of a file -----------------------------------------------------------


def directory(path: Path, outside: Path) -> None:
    """A directory with something in it."""
    path.mkdir()
    (path / "x").write_text("x")


def pipe(path: Path, outside: Path) -> None:
    """A pipe that nobody writes into."""
    os.mkfifo(path)


def loop(path: Path, outside: Path) -> None:
    """A link to itself."""
    path.symlink_to(path)


def link_to_file(path: Path, outside: Path) -> None:
    """A link to somebody else's file."""
    path.symlink_to(outside / "file")


def link_to_folder(path: Path, outside: Path) -> None:
    """A link to somebody else's folder."""
    path.symlink_to(outside / "folder")


def dangling(path: Path, outside: Path) -> None:
    """A link to a file that somebody else does not have yet."""
    path.symlink_to(outside / "new")


def garbage(path: Path, outside: Path) -> None:
    """A file of noise."""
    path.write_bytes(np.random.default_rng(0).bytes(500))


ODD = (directory, pipe, loop, link_to_file, link_to_folder, dangling, garbage)


def put(kind: Callable[[Path, Path], None], path: Path, place: Place) -> None:
    """Put something else in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    kind(path, place.outside)


# --- Caches ---------------------------------------------------------------------------------------

SHAPE = (6, 4, 4, 1)
IMAGE = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
LABEL = np.arange(6, dtype=np.int32)
ARRAYS = {"train_x": np.float32(IMAGE.reshape(6, -1)), "train_y": LABEL}


@group("caches", quick=15)
def caches(rng: np.random.Generator) -> Named:
    """Decoded images and features, the source they are of, and what is executed from a cache."""
    for number in range(14):
        suffix, kind = ("image.npy", "label.npy", "json")[number % 3], ("flip", "cut")[number % 2]
        share = rng.random()
        name = f"decoded {suffix}: {kind} at {share:.3f}"
        yield name, partial(damage_decoded, suffix, partial(damage, kind, share, number))
    for number, kind in enumerate(ODD):
        suffix = ("image.npy", "label.npy", "json")[number % 3]
        yield f"decoded {suffix}: {kind.__name__}", partial(damage_decoded, suffix, kind)
    for number in range(12):
        kind, share = ("flip", "cut", "zeros")[number % 3], rng.random()
        name = f"features: {kind} at {share:.3f}"
        yield name, partial(damage_features, partial(damage, kind, share, number))
    for kind in ODD:
        yield f"features: {kind.__name__}", partial(damage_features, kind)
    yield "features of other labels", other_features
    for number in range(6):
        share = rng.random()
        yield f"a source of other labels at {share:.3f}", partial(relabel, share, number)
    for name in PLACES:
        if ROOT_USER or "another user" not in name:
            yield f"a cache that is {name}", partial(executed, name)
            yield f"a library in a cache that is {name}", partial(planted, name)


def damage(kind: str, share: float, seed: int, path: Path, outside: Path) -> None:
    """Damage the bytes of a file; as the functions of ODD."""
    path.write_bytes(damaged(path.read_bytes(), kind, share, seed))


def damage_decoded(suffix: str, kind: Callable[[Path, Path], None], place: Place) -> None:
    """Read decoded images of which a file is damaged."""

    def decode() -> Iterator[tuple[np.ndarray, int]]:
        return zip(IMAGE, LABEL.tolist(), strict=True)

    stem = place.here / "set" / "train"
    load_or_build([place.here], "set/train", "source", SHAPE, decode)
    path = stem.with_name(f"train.{suffix}")
    if kind in ODD:
        put(kind, path, place)
    else:
        kind(path, place.outside)
    for _ in range(2):
        image, label = load_or_build([place.here], "set/train", "source", SHAPE, decode)
        assert np.array_equal(image, IMAGE) and np.array_equal(label, LABEL), "other images"


def damage_features(kind: Callable[[Path, Path], None], place: Place) -> None:
    """Read features of which the file is damaged."""
    path = place.here / "features" / "step-4.npz"
    fingerprint = {"weights": "a", "data": "b"}
    cached_features(path, fingerprint, lambda: ARRAYS)
    if kind in ODD:
        put(kind, path, place)
    else:
        kind(path, place.outside)
    for _ in range(2):
        assert same_tree(cached_features(path, fingerprint, lambda: ARRAYS), ARRAYS)


def other_features(place: Place) -> None:
    """Ask for the features of other weights and other labels."""
    path = place.here / "step-4.npz"
    for number, word in enumerate("abc"):
        other = ARRAYS | {"train_y": np.roll(LABEL, number)}
        found = cached_features(path, {"data": word}, lambda wanted=other: wanted)
        assert same_tree(found, other), "features of before"


def relabel(share: float, seed: int, place: Place) -> None:
    """Change a byte of a prepared set, and put its dates back."""
    source = place.here / "prepared"
    source.mkdir()
    path = source / "train.array_record"
    path.write_bytes(np.random.default_rng(0).bytes(200_000))
    times = time.time_ns() - 10**11
    os.utime(path, ns=(times, times))
    before = source_digest(source, [place.here / "cache"])
    assert source_digest(source, [place.here / "cache"]) == before
    path.write_bytes(damaged(path.read_bytes(), "flip", share, seed))
    os.utime(path, ns=(times, times))
    assert source_digest(source, [place.here / "cache"]) != before, "not seen"


# What is wrong with a cache, done to (its root, its folder `native`).
PLACES: dict[str, Callable[[Path, Path], object]] = {
    "sound": lambda root, folder: None,
    "of mode 1777": lambda root, folder: root.chmod(0o1777),
    "of mode 0777": lambda root, folder: root.chmod(0o777),
    "of mode 0770 inside": lambda root, folder: folder.chmod(0o770),
    "another user's": lambda root, folder: os.chown(root, NOBODY, NOBODY),
    "another user's inside": lambda root, folder: os.chown(folder, NOBODY, NOBODY),
    "another user's, of mode 1777": lambda root, folder: (
        os.chown(root, NOBODY, NOBODY),
        root.chmod(0o1777),
    ),
}


def executed(kind: str, place: Place) -> None:
    """Ask for the folder from which libraries are loaded."""
    root = place.here / "cache"
    folder = root / "native"
    folder.mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    PLACES[kind](root, folder)
    with mock.patch.dict(os.environ, SSL_JAX_CACHE=str(root)):
        found = private_folder("native")
    assert weakness(found, found) is None
    assert (found == folder) == (kind == "sound"), f"took {found}"


def planted(kind: str, place: Place) -> None:
    """Put files into a cache that others wrote, and look whether they would be executed."""
    folder = place.here / "compiled"
    folder.mkdir()
    folder.chmod(0o755)  # where others reach the files
    path = folder / "program"
    path.write_bytes(b"not ours")
    path.chmod(0o600)
    PLACES[kind](path, path)
    linked = folder / "link"
    linked.symlink_to(place.outside / "file")
    assert is_private_file(path) == (kind == "sound") and not is_private_file(linked)
    delete_foreign(folder)
    assert path.exists() == (kind == "sound") and not linked.is_symlink()


# --- Links and odd files in a work directory ------------------------------------------------------

ENTRIES = (
    *("config.json", "metrics.csv", "dynamics.npz", "result.json", "figures", "figures/views.png"),
    *("features", "features/step-4.npz", "checkpoints", "checkpoints/4", ".lock"),
)


@group("links", quick=2)
def links(rng: np.random.Generator) -> Named:
    """Something else in the place of each file and folder, under a second start."""
    pairs = [(entry, kind) for entry in ENTRIES for kind in ODD if entry != ".lock" or kind != loop]
    for i in sorted(rng.permutation(len(pairs))[:42]):
        entry, kind = pairs[i]
        yield f"{entry}: {kind.__name__}", partial(odd_entry, entry, kind)


def odd_entry(entry: str, kind: Callable[[Path, Path], None], place: Place) -> None:
    """Start a run again in whose directory something else stands in a place."""
    put(kind, place.run / entry, place)
    second_start(place.run, place.base)


# --- Leases and locks -----------------------------------------------------------------------------


def named(**changes: Any) -> str:
    """Return the content of a lease file, with other fields; None: without it."""
    known = {**lease.signature(), **changes}
    return json.dumps({name: value for name, value in known.items() if value is not ...})


ELSEWHERE = {"machine": "another", "host": "another"}
# Content of a lease file, its age in seconds, and whether a claim must succeed.
LEASES: dict[str, tuple[str | bytes, float, bool]] = {
    "ours, new": (named(), 0, False),
    "ours, silent": (named(), 400, True),
    "of an ended process": (named(birth="0"), 0, True),
    "of a process of no number": (named(pid=2**31 - 1), 0, True),
    "of another machine, new": (named(**ELSEWHERE), 0, False),
    "of another machine, silent": (named(**ELSEWHERE), 400, True),
    "of a day ahead": (named(**ELSEWHERE), -86400, True),
    "freed": ("free", 0, True),
    "empty, new": ("", 0, False),
    "empty, old": ("", 100, True),
    "garbage, new": (b"\xff\x00\xfe", 0, False),
    "garbage, old": (b"\xff\x00\xfe", 100, True),
    "a list": ("[1, 2]", 100, True),
    "null": ("null", 100, True),
    "nested": ("[" * 10**5, 100, True),
    "without a pid": (named(pid=...), 100, True),
    "text for a pid": (named(pid="x"), 100, True),
    "a negative pid": (named(pid=-1), 100, True),
    "a fraction": (named(pid=1.5), 100, True),
    "true for a pid": (named(pid=True), 100, True),
    "a huge pid": (named(pid=10**30), 100, True),
    "a list for a host": (named(host=["x"]), 100, True),
    "a host of controls": (named(machine="x", host="\x1b[2J\n"), 0, False),
    "a million bytes": ("x" * 10**6, 100, True),
}


@group("leases", quick=20)
def leases(rng: np.random.Generator) -> Named:
    """Files that no process writes, in the place of a lease and of a lock."""
    for kind in LEASES:
        yield f"a lease, {kind}", partial(claim_lease, kind)
    for kind in (directory, pipe, loop, link_to_folder, dangling):
        yield f"a lease: {kind.__name__}", partial(odd_lease, kind)
    for kind in ODD:
        yield f"a lock: {kind.__name__}", partial(odd_lock, kind)


def claim_lease(kind: str, place: Place) -> None:
    """Claim a lease whose file has this content."""
    text, age, free = LEASES[kind]
    path = place.here / "3"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    at = time.time() - age
    os.utime(path, (at, at))
    words = lease.holder(place.here)
    assert "\n" not in words and "\x1b" not in words and len(words) < 200
    claimed = lease.claim(place.here)
    assert (claimed is not None) == free, "two holders" if claimed else "held by nobody"
    if claimed:
        assert lease.claim(place.here) is None, "two holders"


def odd_lease(kind: Callable[[Path, Path], None], place: Place) -> None:
    """Claim a lease in whose place something else is."""
    kind(place.here / "1", place.outside)
    lease.holder(place.here)
    assert lease.claim(place.here) is not None
    assert lease.claim(place.here) is None, "two holders"


def odd_lock(kind: Callable[[Path, Path], None], place: Place) -> None:
    """Lock a directory whose lock is something else; a second start is refused all the same."""
    kind(place.here / NAME, place.outside)
    with locked(place.here):
        try:
            with locked(place.here):
                raise AssertionError("two holders")
        except UserError as error:
            assert "is at work in" in str(error)


# --- Full disks -----------------------------------------------------------------------------------

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Refusing:
    """A function of the system that fails from its call number `first` on."""

    def __init__(self, real: Callable, first: int, number: int) -> None:
        self.real, self.left, self.number = real, first, number

    def __call__(self, *words: Any, **options: Any) -> Any:
        """Fail, or do what is asked for."""
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number), str(words[0]))
        return self.real(*words, **options)


class Patch:
    """Let a function of `os` fail while this context lasts."""

    def __init__(self, name: str, first: int, number: int) -> None:
        self.patch = mock.patch.object(os, name, Refusing(getattr(os, name), first, number))

    def __enter__(self) -> None:
        self.patch.start()

    def __exit__(self, *error: object) -> None:
        self.patch.stop()


def picture(folder: Path) -> None:
    """Save a figure."""
    save(plt.subplots(figsize=(1, 1))[0], folder / "a.png")


def decoded(folder: Path) -> None:
    """Decode images."""
    load_or_build([folder], "t", "s", SHAPE, lambda: zip(IMAGE, LABEL.tolist(), strict=True))


def row(folder: Path) -> None:
    """Append a row."""
    metrics_csv.append_row(folder / "metrics.csv", {"step": 9, "loss": 1.0})


def failure(folder: Path) -> None:
    """Write why a cell failed."""
    write_failure(SimpleNamespace(failure=folder / "x" / "failed.txt"), ValueError("line"))  # pyright: ignore


# What writes something into a folder.
WRITERS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda folder: begin_workdir(folder, {"task": "x"}),
    "result.json": lambda folder: write_json(folder / "result.json", {"a": 1}),
    "dynamics.npz": lambda folder: write_dynamics(folder, [{"step": np.int64(1)}]),
    "metrics.csv": row,
    "rows": lambda folder: metrics_csv.truncate_after(folder / "metrics.csv", 3),
    "figure": picture,
    "features": lambda folder: cached_features(folder / "f.npz", {}, lambda: ARRAYS),
    "decoded images": decoded,
    "failed.txt": failure,
}


@group("disk", quick=6)
def disk(rng: np.random.Generator) -> Named:
    """Whatever a disk refuses, at every file that is written, and in a start that trains."""
    for writer in WRITERS:
        for function in ("fsync", "replace", "write"):
            number = ERRORS[rng.integers(len(ERRORS))]
            name = f"{writer}: {errno.errorcode[number]} of {function}"
            yield name, partial(refuse_writer, writer, function, number)
    for number in range(14):
        function, first = ("fsync", "replace", "write")[number % 3], int(rng.integers(0, 9))
        code = ERRORS[number % len(ERRORS)]
        name = f"a start, {errno.errorcode[code]} of {function} from call {first}"
        yield name, partial(refuse_start, function, first, code)


def refuse_writer(writer: str, function: str, number: int, place: Place) -> None:
    """Write where the disk refuses: the file before it stays, and nothing else is left."""
    WRITERS[writer](place.here)
    before = contents(place.here)
    with Patch(function, 0, number):
        try:
            WRITERS[writer](place.here)
        except UserError as error:
            assert os.strerror(number) in str(error) or os.strerror(number) in str(error.__cause__)
            assert contents(place.here) == before, "something is left"
            raise
    assert contents(place.here).keys() == before.keys(), "something is left"


def refuse_start(function: str, first: int, number: int, place: Place) -> None:
    """Go on with a run while the disk refuses, and again when there is room: it is the whole."""
    refusal: UserError | None = None
    with Patch(function, first, number):
        try:
            second_start(place.stopped, place.base)
        except UserError as error:
            refusal = error
        except AssertionError as error:
            assert str(error).startswith("another result") and place.warned, error
    second_start(place.stopped, place.base)
    if refusal:
        raise refusal
