"""Which examples each step takes, and how their bytes reach it.

The examples of step n are a function of (seed, n, train size, batch size) alone: every epoch is a
fresh full shuffle, cut into batches, the last partial one dropped. So a run that stops goes on with
the very next batch, and the number of devices, processes or steps per call changes nothing.

A small set is *resident*: it lies on the device once, and a step gathers its images by index. A
large one is *streamed*: the host gathers, a background thread ahead. Both hand the step the same
images.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError

Plan = Iterable[tuple[int, int]]
Batch = dict[str, Any]
DEFAULT_BUDGET = 4 * 2**30  # bytes, where the device does not say what it has
PREFETCH = 2  # requests made ahead of the consumer


class Feed(NamedTuple):
    """What `make_feed` makes.

    steps_per_epoch: full batches in one epoch.
    data: arrays that the step gathers from, to be put on every device: {"image": (N, H, W, C)
        uint8} or {}.
    batches: `batches(plan, rows=slice(None))`, for a plan of (first step, count) pairs, yields for
        each pair a dict whose leading axis runs over its `count` steps:
            position (count, b) int32: place in the global batch, 0..B-1; randomness follows it;
            index (count, b) int32 if resident, else image (count, b, H, W, C) uint8;
            label (count, b) int32 where the feed has labels.
        `rows` picks the b of the B rows that are wanted, say one process's share; no other image is
        read.
    """

    steps_per_epoch: int
    data: dict[str, np.ndarray]
    batches: Callable[..., Iterator[Batch]]


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The (size,) int32 permutation in which this epoch takes the examples."""
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.int32)


# Neighbouring steps share an epoch; the last one is kept for the chunk that straddles two.
_recent_order = functools.lru_cache(maxsize=4)(epoch_order)


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """The (batch_size,) int32 examples of step `step` (from 0), out of `size`."""
    epoch, place = divmod(step, size // batch_size)
    return _recent_order(seed, epoch, size)[place * batch_size : (place + 1) * batch_size].copy()


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in an epoch of `count` images; UserError where there is none."""
    if not 1 <= batch_size <= count:
        raise UserError(f"batch_size: got {batch_size}, takes 1 to the {count} training images")
    return count // batch_size


def make_feed(
    image: np.ndarray,
    batch_size: int,
    seed: int,
    resident: bool | Literal["auto"] = "auto",
    memory_budget: int | None = None,
    label: np.ndarray | None = None,
) -> Feed:
    """A feed of shuffled batches of `image` (N, H, W, C) uint8, with `label` (N,) int32 where it is
    given.

    Args:
        batch_size: images in the global batch.
        seed: of the shuffles.
        resident: whether the images lie on the device; "auto": if they take at most `memory_budget`
            bytes.
        memory_budget: None stands for `device_budget()`.
    Raises:
        UserError: a batch larger than the set, or a value that is none.
    """
    chex.assert_rank(image, 4)
    chex.assert_type(image, np.uint8)
    steps = steps_per_epoch(len(image), batch_size)
    if seed < 0:
        raise UserError(f"seed: got {seed}, takes 0 or more")
    if resident not in (True, False, "auto"):
        raise UserError(f"resident: got {resident!r}, takes True, False or 'auto'")
    if resident == "auto":
        resident = image.nbytes <= (device_budget() if memory_budget is None else memory_budget)

    def request(first_step: int, count: int, rows: slice) -> Batch:
        asked = range(first_step, first_step + count)
        index = np.stack([batch_indices(seed, n, len(image), batch_size)[rows] for n in asked])
        position = np.tile(np.arange(batch_size, dtype=np.int32)[rows], (count, 1))
        labelled = {} if label is None else {"label": label[index]}
        return (
            {"position": position}
            | labelled
            | ({"index": index} if resident else {"image": image[index]})
        )

    def batches(plan: Plan, rows: slice = slice(None)) -> Iterator[Batch]:
        calls = (functools.partial(request, first, count, rows) for first, count in plan)
        return (call() for call in calls) if resident else prefetch(calls)

    return Feed(steps, {"image": image} if resident else {}, batches)


def load(data: dict, batch: Batch) -> jax.Array:
    """The (B, H, W, C) uint8 images of one step's batch (no `count` axis), inside the compiled
    step.
    """
    if "image" in batch:
        return jnp.asarray(batch["image"])
    return jnp.asarray(data["image"])[batch["index"]]


def device_budget() -> int:
    """Bytes that a resident set may take: a quarter of the device's memory, 4 GiB where it does not
    tell.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit // 4 if limit else DEFAULT_BUDGET


def prefetch(calls: Iterable[Callable[[], Batch]], ahead: int = PREFETCH) -> Iterator[Batch]:
    """Yield the results of `calls` in order, made up to `ahead` before they are asked for, in a
    thread.

    What a call raises is raised here, in its turn. The thread ends with the generator: when it is
    exhausted, closed, or forgotten.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    pending = deque()
    try:
        for call in calls:
            pending.append(pool.submit(call))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
