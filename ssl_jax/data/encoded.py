"""Images that stay encoded: decoded when they are asked for, and while training by Grain.

`EncodedImages` stands where an array (N, H, W, C) uint8 would. Training does not index it but takes
its batches from `Batches`: Grain's processes decode them, the examples of each step in the same
order as everywhere (`order.batch_indices`), so that a run takes the same pixels whichever way they
come and goes on where it stopped.

A process that decodes imports no JAX. It ends with its parent, however that ends. Signals reach the
parent alone, which may save first.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from ssl_jax import files
from ssl_jax.data.cache import write_first
from ssl_jax.data.order import batch_indices
from ssl_jax.data.records import Records, part
from ssl_jax.errors import UserError
from ssl_jax.runtime import stops
from ssl_jax.runtime.terminal import progress_bar

Decode = Callable[[Any], np.ndarray]  # what `Records.read` returns -> (H, W, C) uint8

ELEMENT = 4 * 2**20  # bytes of decoded images that a process hands over at once
BUFFERED = 2  # of them that each process makes ahead
CHUNK = 256  # images that the pass over all of them decodes at once
SHOWN = 10  # damaged images that an error names
LATE = 60.0  # seconds after SIGTERM in which a process still serves a parent that saves
SHARED = Path("/dev/shm")


class EncodedImages:
    """Images as a read-only array (N, H, W, C) uint8 that decodes what it is asked for."""

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(
        self, records: Records, decode: Decode, image: tuple[int, int, int], key: str
    ) -> None:
        """Stand for the images of some records.

        Args:
            records: their names, and how they are read; labels are not looked at.
            decode: makes an (H, W, C) uint8 image of what `records.read` returns.
            image: its (H, W, C).
            key: names contents and decoding: other pixels, another key.
        """
        self.records, self.decode, self.image, self.key = records, decode, image, key

    def __len__(self) -> int:
        return len(self.records.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self), *self.image)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def identity(self) -> str:
        """What decides about the pixels, for digests."""
        names = hashlib.sha256("\0".join(self.records.names).encode(errors="replace"))
        return f"{self.key} {self.shape} {names.hexdigest()}"

    def select(self, rows: np.ndarray) -> "EncodedImages":
        """Return these images, still encoded."""
        return EncodedImages(part(self.records, rows), self.decode, self.image, self.key)

    def one(self, index: int) -> np.ndarray:
        """Return image `index`, (H, W, C) uint8; UserError that names it where it is damaged."""
        try:
            pixels = self.decode(self.records.read(index))
            if pixels.shape != self.image or pixels.dtype != np.uint8:
                raise ValueError(f"{pixels.shape} {pixels.dtype}, takes {self.image} uint8")
        except Exception as error:  # files, archives and Pillow each have their own
            raise UserError(
                f"{self.records.names[index]}: cannot be decoded ({damage_of(error)})"
            ) from error
        return pixels

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the images of a slice or of an array of indices, decoded; of a number, one."""
        if isinstance(index, int | np.integer):
            return self.one(range(len(self))[index])
        rows = np.arange(len(self))[index]
        chosen = rows.ravel().tolist()
        result = np.empty((len(chosen), *self.image), np.uint8)

        def fill(place: int) -> None:
            result[place] = self.one(chosen[place])

        if len(chosen) < 2:
            for place in range(len(chosen)):
                fill(place)
        else:  # Pillow decodes and resizes in parallel
            list(_threads().map(fill, range(len(chosen))))
        return result.reshape(*rows.shape, *self.image)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)

    def damaged(self, roots: Sequence[Path]) -> list[tuple[int, str]]:
        """Return the place of each image that cannot be decoded, and what is wrong with it.

        All are decoded once; the list is kept in `verified/` of a root by `identity`.

        Args:
            roots: cache directories, first choice first.
        """
        name = hashlib.blake2b(self.identity.encode(), digest_size=16).hexdigest()
        cards = [root / "verified" / f"{name}.json" for root in roots]
        damaged = next((found for card in cards if (found := _known(card)) is not None), None)
        if damaged is None:
            damaged = self._damaged()
            write_first(cards, json.dumps({"damaged": damaged}).encode())
        return damaged

    def _damaged(self) -> list[tuple[int, str]]:
        """Return the place of each damaged image and what is wrong with it; decodes all."""

        def examine(index: int) -> tuple[int, str] | None:
            try:
                self.one(index)
            except UserError as error:
                return index, damage_of(error.__cause__ or error)
            return None

        found: list[tuple[int, str]] = []
        title = "checking that every image decodes"
        with progress_bar(len(self), 0, "image", title) as bar:
            for start in range(0, len(self), CHUNK):
                rows = range(start, min(start + CHUNK, len(self)))
                found += [each for each in _threads().map(examine, rows) if each]
                bar.update(len(rows))
        return found


def require_whole(images: EncodedImages, roots: Sequence[Path]) -> None:
    """Raise UserError that names the damaged images, where there are any."""
    if damaged := images.damaged(roots):
        names = [f"{images.records.names[row]} ({why})" for row, why in damaged[:SHOWN]]
        shown = "; ".join(names) + ("; ..." if len(damaged) > SHOWN else "")
        raise UserError(f"data.damaged: {len(damaged)} images cannot be decoded: {shown}")


def damage_of(error: BaseException) -> str:
    """Return what reading or decoding a picture raised, as one short line."""
    text = files.reason(error) if isinstance(error, OSError) else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(processors(), thread_name_prefix="decode")


def _known(card: Path) -> list[tuple[int, str]] | None:
    """Return what a card says is damaged; None where it cannot be read."""
    try:
        return [(int(index), str(why)) for index, why in json.loads(card.read_text())["damaged"]]
    except Exception:  # whatever is wrong with it, the images are examined again
        return None


def processors() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Batches by Grain -----------------------------------------------------------------------------


class Parts:
    """A source for Grain: element i is part i % parts of step first + i // parts.

    Its length has no meaning beyond being enough: the consumer ends.
    """

    def __init__(
        self, images: EncodedImages, batch_size: int, seed: int, first: int, rows: slice
    ) -> None:
        self.images, self.batch_size, self.seed, self.first, self.rows = (
            images,
            batch_size,
            seed,
            first,
            rows,
        )
        count = len(range(*rows.indices(batch_size)))
        size = max(1, ELEMENT // int(np.prod(images.image)))
        self.parts = max(1, -(-count // size))

    def __len__(self) -> int:
        return (2**31 - 1 - self.first) * self.parts

    def __getitem__(self, index: Any) -> np.ndarray:
        step, number = divmod(int(index), self.parts)
        taken = batch_indices(self.seed, self.first + step, len(self.images), self.batch_size)
        chosen = np.array_split(taken[self.rows], self.parts)[number]
        return np.stack([self.images.one(i) for i in chosen.tolist()])


class Batches:
    """The decoded images of consecutive steps, made ahead by Grain's processes."""

    def __init__(self, source: Parts, workers: int) -> None:
        """Start nothing yet.

        Args:
            source: says what is decoded.
            workers: processes that decode; 0: threads of this one.
        """
        self._source, self._workers = source, workers
        self._elements: Any = None

    def take(self) -> np.ndarray:
        """Return the next step's images, (b, H, W, C) uint8.

        Call it in one thread alone: signals are held back there, and so in Grain's threads and
        processes, which it starts.
        """
        if self._elements is None:
            self._elements = self._start()
        try:
            parts = [next(self._elements) for _ in range(self._source.parts)]
        except UserError as error:  # Grain adds lines
            raise UserError(str(error).splitlines()[0]) from error
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "data.resident: got encoded, and a process that decodes ended by itself "
                f"({str(error).split('. ')[0]}); out of memory, or a program without "
                "`if __name__ == '__main__'`"
            ) from error
        return np.concatenate(parts) if len(parts) > 1 else np.array(parts[0])

    def _start(self) -> Any:
        import grain.python as grain  # late: it takes a second

        if not flags.FLAGS.is_parsed():  # Grain's own have their defaults
            flags.FLAGS.mark_as_parsed()
        _start_tracker()
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, stops.SIGNALS)
        threads = 1 if self._workers else processors()
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        dataset = grain.MapDataset.source(self._source).to_iter_dataset(reading)  # pyright: ignore
        if self._workers:
            _block_jax_in_children()
            options = grain.MultiprocessingOptions(self._workers, BUFFERED)
            if not _room_to_share(self._workers):  # Docker's default has 64 MiB: through pipes
                by_pipe = grain.experimental.DatasetOptions(min_shm_size=2**62)
                dataset = grain.experimental.WithOptionsIterDataset(dataset, by_pipe)
            dataset = dataset.mp_prefetch(options, _begin_worker)
        return iter(dataset)

    def close(self) -> None:
        """End Grain's processes and threads."""
        if self._elements is not None:
            self._elements.close()


def _start_tracker() -> None:
    """Start multiprocessing's own process that deletes what a killed program leaves in memory.

    Starting it lets signals arrive in this thread: it comes before they are held back. Its warning
    of what it deletes is no line for a user who stopped a run.
    """
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _room_to_share(workers: int) -> bool:
    """Return whether shared memory holds what the processes make ahead."""
    needed = workers * (2 * BUFFERED + 2) * ELEMENT
    return not SHARED.is_dir() or shutil.disk_usage(SHARED).free > 2 * needed


def _begin_worker(index: int, count: int) -> None:
    """Let this process end with its parent alone."""
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()

    def end_late(number: int, frame: Any) -> None:
        timer = threading.Timer(LATE, os._exit, (1,))
        timer.daemon = True
        timer.start()

    for number in stops.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # held back since the process began
        signal.signal(signal.SIGTERM, end_late)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


class _WithoutJax:
    """Unpickled first in a process, it makes imports of JAX fail: Grain does without it there."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _block_jax, ()


def _block_jax() -> None:
    logging.set_verbosity(logging.ERROR)  # Grain warns that JAX cannot be imported
    sys.modules.setdefault("jax", None)  # pyright: ignore[reportArgumentType]


def _block_jax_in_children() -> None:
    """Let processes that are started from here on do without JAX: 0.7 s and 100 MB for each.

    What a process is given is unpickled before its target is imported. The main module, which may
    import JAX itself, comes still earlier.
    """
    given = getattr(multiprocessing.current_process(), "_config", None)
    if isinstance(given, dict):
        given["ssl_jax"] = _WithoutJax()
