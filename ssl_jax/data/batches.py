"""Which examples each step takes, and how their images reach it.

The examples of step n are a function of (seed, n, train size, batch size) alone (`order`). So a run
that stops goes on with the very next batch, and the number of devices, processes or steps per call
changes nothing.

A small set is *resident*: it is on the device once, and a step gathers its images by index. A
large one is *streamed*: the host gathers, a background thread ahead. One that is not decoded to
disk is *encoded*: Grain's processes decode ahead (`encoded`). All hand the step the same images.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.encoded import Batches, EncodedImages, Parts, processors
from ssl_jax.data.order import batch_indices
from ssl_jax.errors import UserError

Plan = Iterable[tuple[int, int]]
Batch = dict[str, Any]
DEFAULT_BUDGET = 4 * 2**30  # bytes, where the device does not say what it has
PREFETCH = 2  # requests made ahead of the consumer


class Feed(NamedTuple):
    """Batches of a training set, made by `make_feed`."""

    steps_per_epoch: int  # full batches in one epoch
    # What the step gathers from, to be put on every device: {"image": (N, H, W, C) uint8} or {}.
    data: dict[str, np.ndarray]
    # `batches(plan, rows=slice(None))`, for a plan of (first step, count) pairs, yields for each
    # pair a dict whose leading axis runs over its `count` steps:
    #     position (count, b) int32: place in the global batch, 0..B-1; randomness follows it;
    #     index (count, b) int32 if resident, else image (count, b, H, W, C) uint8;
    #     label (count, b) int32 where the feed has labels.
    # `rows` picks the b of the B rows that are wanted, say one process's share; no other image is
    # read.
    batches: Callable[..., Iterator[Batch]]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch of `count` images; UserError for none."""
    if not 1 <= batch_size <= count:
        raise UserError(f"batch_size: got {batch_size}, takes 1 to the {count} training images")
    return count // batch_size


def make_feed(
    image: np.ndarray | EncodedImages,
    batch_size: int,
    seed: int,
    resident: bool | Literal["auto"] = "auto",
    memory_budget: int | None = None,
    label: np.ndarray | None = None,
    workers: int | None = None,
) -> Feed:
    """Return a feed of shuffled batches.

    Args:
        image: (N, H, W, C) uint8.
        batch_size: images in the global batch.
        seed: of the shuffles.
        resident: whether the images are kept on the device; "auto": if they take at most
            `memory_budget` bytes. Encoded images never are.
        memory_budget: None stands for `device_budget()`.
        label: (N,) int32; None for batches without labels.
        workers: processes that decode encoded images; 0: threads. None: one less than the cores.

    Returns:
        The feed, see `Feed`.

    Raises:
        UserError: a batch larger than the set, or a wrong value.
    """
    if isinstance(image, np.ndarray):
        chex.assert_rank(image, 4)
        chex.assert_type(image, np.uint8)
    steps = steps_per_epoch(len(image), batch_size)
    if seed < 0:
        raise UserError(f"seed: got {seed}, takes 0 or more")
    if resident not in (True, False, "auto"):
        raise UserError(f"resident: got {resident!r}, takes True, False or 'auto'")
    if isinstance(image, EncodedImages):
        resident = False
    elif resident == "auto":
        resident = image.nbytes <= (device_budget() if memory_budget is None else memory_budget)

    def request(first_step: int, count: int, rows: slice, decoded: Batches | None) -> Batch:
        asked = range(first_step, first_step + count)
        index = np.stack([batch_indices(seed, n, len(image), batch_size)[rows] for n in asked])
        position = np.tile(np.arange(batch_size, dtype=np.int32)[rows], (count, 1))
        labelled = {} if label is None else {"label": label[index]}
        if resident:
            gathered = {"index": index}
        elif decoded is None:
            gathered = {"image": image[index]}
        else:
            gathered = {"image": np.stack([decoded.take() for _ in asked])}
        return {"position": position} | labelled | gathered

    def batches(plan: Plan, rows: slice = slice(None)) -> Iterator[Batch]:
        if isinstance(image, EncodedImages):
            return encoded_batches(image, plan, rows)
        calls = (functools.partial(request, first, count, rows, None) for first, count in plan)
        return (call() for call in calls) if resident else prefetch(calls)

    def encoded_batches(image: EncodedImages, plan: Plan, rows: slice) -> Iterator[Batch]:
        plan = iter(plan)
        if (begin := next(plan, None)) is None:
            return
        count = max(1, processors() - 1) if workers is None else workers
        decoded = Batches(Parts(image, batch_size, seed, begin[0], rows), count)
        calls = (
            functools.partial(request, first, count, rows, decoded)
            for first, count in consecutive(itertools.chain([begin], plan))
        )
        try:
            yield from prefetch(calls)
        finally:
            decoded.close()

    return Feed(
        steps, {"image": image} if isinstance(image, np.ndarray) and resident else {}, batches
    )


def consecutive(plan: Plan) -> Iterator[tuple[int, int]]:
    """Yield the plan; ValueError where a call does not begin where the one before it ended."""
    end = None
    for first, count in plan:
        if end is not None and first != end:
            raise ValueError(f"a call begins at step {first}, the one before it ended at {end}")
        yield first, count
        end = first + count


def load(data: dict, batch: Batch) -> jax.Array:
    """Return the (B, H, W, C) uint8 images of one step's batch, inside the compiled step.

    The batch has no `count` axis.
    """
    if "image" in batch:
        return jnp.asarray(batch["image"])
    return jnp.asarray(data["image"])[batch["index"]]


def device_budget() -> int:
    """Return the bytes that a resident set may take.

    A quarter of the device's memory, or 4 GiB where the device does not report it.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit // 4 if limit else DEFAULT_BUDGET


def prefetch(calls: Iterable[Callable[[], Batch]], ahead: int = PREFETCH) -> Iterator[Batch]:
    """Yield the results of `calls` in order; a thread makes up to `ahead` of them in advance.

    What a call raises is raised here, in its turn. The thread ends with the generator: when it is
    exhausted, closed, or collected.
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
