"""What a trial is, how one is run, and what counts as surviving it.

A trial survives with the right result, or with one `UserError` of one line, such as `launch.py`
prints behind `error:`. Any other exception, a wrong result, a warning of a library, a change to
files outside the run, and more than `MOST_SECONDS` are failures.
"""

import contextlib
import io
import logging
import os
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from commands import TINY

from ssl_jax import launch
from ssl_jax.builders import fields, pretraining
from ssl_jax.errors import UserError
from ssl_jax.workdir import checkpoints, metrics_csv
from ssl_jax.workdir.directory import read_json
from ssl_jax.workdir.dynamics_npz import resume_dynamics

# Four steps, with a checkpoint of the second and of the fourth.
SMALL = [
    *TINY,
    "--config.encoder.name=mlp",
    "--config.encoder.depth=1",
    "--config.epochs=2",
    "--config.data.train_size=128",
    "--config.devices=1",
    "--config.dynamics.every=1",
    "--config.log_every=1",
    "--config.probe.protocol=seed",
]
PRETRAIN = ["--config=configs/quickstart.py", *SMALL]
STEPS = (2, 4)
TIMES = ("images_per_second", "seconds", "probe_seconds")  # differ from start to start
MOST_SECONDS = 60.0
LONGEST = 2100  # characters of a line
OUTCOMES = ("right", "one line", "wrong", "raised", "outside", "endless")  # two of them survive


class Base:
    """The run whose copies are attacked, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "run", folder / "cache"
        words = ["launch.py", *PRETRAIN, f"--workdir={self.folder}"]
        with mock.patch.dict(os.environ, SSL_JAX_CACHE=str(self.cache)), silence():
            assert launch.main(words) == 0
            self.config = fields.with_local_paths(launch.parse_flags(words)["config"].value)
            _, plan, parts, _ = pretraining.prepare(self.config)
            init = pretraining.make_init(parts, plan.data)
            self.fresh = jax.device_get(pretraining.fresh_state(self.config, init))
        saved = self.folder / "checkpoints"
        self.states = {n: checkpoints.restore_parts(saved, n, self.fresh) for n in STEPS}
        self.notes = {n: checkpoints.read_notes(saved, n) for n in STEPS}
        self.rows = metrics_csv.read_rows(self.folder / "metrics.csv")
        self.records = resume_dynamics(self.folder, STEPS[-1], self.notes[STEPS[-1]]["dynamics"])
        self.result = without_times(read_json(self.folder / "result.json"))
        assert len(self.records) == 5 and len(self.rows) == 4


class Place:
    """Where a trial happens."""

    def __init__(self, base: Base, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.here = folder / "here"  # the current directory
        self.outside = folder / "outside"  # somebody else's
        self.here.mkdir(parents=True)
        (self.outside / "folder").mkdir(parents=True)
        for name in ("file", "folder/file"):
            (self.outside / name).write_text("mine\n")
        self.note = ""  # of a trial, for the report of its failure

    @cached_property
    def run(self) -> Path:
        """A copy of the finished run."""
        return Path(shutil.copytree(self.base.folder, self.folder / "run"))

    @cached_property
    def stopped(self) -> Path:
        """A copy of the run as it was after its second step, with the rows of all."""
        run = Path(shutil.copytree(self.base.folder, self.folder / "stopped"))
        for name in ("checkpoints/4", "features", "figures"):
            shutil.rmtree(run / name)
        (run / "result.json").unlink()
        return run

    @property
    def warned(self) -> bool:
        """Whether a warning was printed in this trial."""
        return "warning: " in sys.stderr.getvalue()  # pyright: ignore


Attack = Callable[[Place], None]
Named = Iterable[tuple[str, Attack]]


class Group(NamedTuple):
    """Trials of one kind."""

    make: Callable[[np.random.Generator], Named]
    quick: int  # how many of them are in the quick sample


class Trial(NamedTuple):
    """One attack. `attack(place)` raises AssertionError where the result is wrong."""

    group: str
    name: str
    attack: Attack


class Outcome(NamedTuple):
    """What became of a trial."""

    trial: Trial
    kind: str  # one of OUTCOMES
    words: str
    seconds: float

    @property
    def survived(self) -> bool:
        """Whether the program did what it should."""
        return self.kind in OUTCOMES[:2]


GROUPS: dict[str, Group] = {}


def group(name: str, quick: int = 10) -> Callable[[Callable], Callable]:
    """Register a generator of (name, attack), which takes the source of its random numbers."""

    def register(make: Callable[[np.random.Generator], Named]) -> Callable:
        GROUPS[name] = Group(make, quick)
        return make

    return register


def trials(name: str, seed: int = 0) -> list[Trial]:
    """Return all trials of a group, the same for the same seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return [Trial(name, *named) for named in GROUPS[name].make(rng)]


def sample(name: str, seed: int = 0) -> list[Trial]:
    """Return the quick sample of a group."""
    rng, whole = np.random.default_rng(seed), trials(name, seed)
    chosen = rng.permutation(len(whole))[: GROUPS[name].quick]
    return [whole[i] for i in sorted(chosen)]


class TooLong(BaseException):
    """A trial took more than MOST_SECONDS; no `except Exception` swallows it."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TooLong in this context after so many seconds. Only the main thread can."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def silence() -> Iterator[io.StringIO]:
    """Keep what is printed; yield what goes to standard error."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        yield errors


@contextlib.contextmanager
def logged(stream: io.StringIO) -> Iterator[None]:
    """Write what libraries log into `stream` alone."""
    log, handler = logging.getLogger(), logging.StreamHandler(stream)
    before, log.handlers = log.handlers, [handler]
    try:
        yield
    finally:
        log.handlers = before


def attempt(trial: Trial, base: Base, folder: Path) -> Outcome:
    """Run a trial in a folder that does not exist yet, which is deleted again."""
    place = Place(base, folder)
    before, hook, began = contents(place.outside), sys.unraisablehook, time.monotonic()
    errors = io.StringIO()
    try:
        with (
            silence() as errors,
            logged(errors),
            mock.patch.dict(os.environ, SSL_JAX_CACHE=str(base.cache)),
            contextlib.chdir(place.here),
            warnings.catch_warnings(),
            at_most(MOST_SECONDS),
        ):
            warnings.simplefilter("error")
            trial.attack(place)
        kind, words = "right", ""
    except UserError as error:
        kind, words = "one line", str(error)
        if "\n" in words or len(words) < 10:
            kind, words = "wrong", f"no line: {words[:LONGEST]!r}"
    except AssertionError as error:
        kind, words = "wrong", str(error)
    except TooLong:
        kind, words = "endless", f"more than {MOST_SECONDS:.0f} s"
    except Exception as error:
        kind, words = "raised", f"{type(error).__name__}: {error}"
    finally:
        sys.unraisablehook = hook
    if "Traceback (most" in errors.getvalue():
        kind, words = "raised", errors.getvalue()[-LONGEST:]
    if contents(place.outside) != before:
        kind, words = "outside", "what is somebody else's was changed"
    seconds = time.monotonic() - began
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(trial, kind, f"{place.note}: {words}" if place.note else words, seconds)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every path below, with the bytes of the files."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


# --- What the trials share ------------------------------------------------------------------------


def command(*words: str) -> None:
    """Run a command line; raise its one line as a UserError where it is refused."""
    status = launch.main(["launch.py", *words])
    if status:
        printed = sys.stderr.getvalue()  # pyright: ignore
        lines = [line for line in printed.splitlines() if not line.startswith("warning: ")]
        assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), (status, lines)
        assert len(lines[0]) <= LONGEST
        raise UserError(lines[0])


def second_start(run: Path, base: Base) -> None:
    """Start the run again, and check that it ends with the history and the state of the whole."""
    command(*PRETRAIN, f"--workdir={run}")
    rows = metrics_csv.read_rows(run / "metrics.csv")
    assert same_rows(rows, base.rows), "another history"
    last = checkpoints.restore_parts(run / "checkpoints", STEPS[-1], base.fresh)
    assert same_tree(last, base.states[STEPS[-1]]), "another state"
    result = without_times(read_json(run / "result.json"))
    own = ("diagnosis", "verdict") if "warning: " in sys.stderr.getvalue() else ()  # pyright: ignore
    wrong = [name for name in base.result if name not in own and result[name] != base.result[name]]
    assert not wrong, f"another result: {wrong}"


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what differs from start to start."""
    return {name: value for name, value in result.items() if name not in TIMES}


def same_rows(rows: list[dict], others: list[dict]) -> bool:
    """Return whether two histories are equal but for their times."""
    pairs = [[[row[n] for n in row if n not in TIMES] for row in each] for each in (rows, others)]
    return len(rows) == len(others) and bool(np.array_equal(*pairs, equal_nan=True))


def same_tree(tree: Any, other: Any) -> bool:
    """Return whether two trees of arrays are equal bit for bit."""
    leaves = [jax.tree.leaves(each) for each in (tree, other)]
    return len(leaves[0]) == len(leaves[1]) and all(
        np.asarray(a).dtype == np.asarray(b).dtype
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(*leaves, strict=True)
    )


DAMAGES = ("flip", "cut", "zeros", "noise", "twice", "empty")


def damaged(content: bytes, kind: str, share: float, seed: int = 0) -> bytes:
    """Return a file's content with a fault at `share` of its length."""
    at = min(int(share * len(content)), max(len(content) - 1, 0))
    end = min(at + 16, len(content))
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ 1 << seed % 8]) + content[at + 1 :]
    if kind == "noise":  # a sector of another file
        noise = np.random.default_rng(seed).bytes(end - at)
        return content[:at] + noise + content[end:]
    others = {"cut": content[:at], "twice": content * 2, "empty": b""}
    others |= {"zeros": content[:at] + bytes(len(content) - at)}  # after a power cut
    return others.get(kind, content)
