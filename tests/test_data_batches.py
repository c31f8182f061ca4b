"""Data order, and the two ways in which images reach the step."""

import gc
import itertools
import threading
import time

import chex
import jax
import numpy as np
import pytest

from ssl_jax.data.batches import (
    DEFAULT_BUDGET,
    device_budget,
    load,
    make_feed,
    prefetch,
)
from ssl_jax.data.order import batch_indices, epoch_order
from ssl_jax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (23, 4, 3, 2), np.uint8)
PLAN = [(0, 2), (2, 1), (3, 4)]  # 5 steps an epoch: the last request straddles two epochs


@pytest.mark.parametrize("size, batch_size", [(23, 4), (24, 4), (8, 8), (5, 1)])
def test_an_epoch_takes_each_example_once_and_drops_the_last_partial_batch(size, batch_size):
    steps = size // batch_size
    for epoch in range(3):
        taken = [batch_indices(7, epoch * steps + i, size, batch_size) for i in range(steps)]
        chex.assert_shape(taken, (batch_size,))
        np.testing.assert_array_equal(
            np.concatenate(taken), epoch_order(7, epoch, size)[: steps * batch_size]
        )
        np.testing.assert_array_equal(np.sort(epoch_order(7, epoch, size)), np.arange(size))


def test_order_is_numpys_permutation_of_seed_and_epoch():
    np.testing.assert_array_equal(
        epoch_order(3, 5, 100), np.random.default_rng([3, 5]).permutation(100)
    )
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_shuffle_is_full():
    """Position 0 takes each of 10 examples equally often: chi-squared with 9 degrees, 99.9 % below
    27.9.
    """
    first = np.bincount([epoch_order(0, epoch, 10)[0] for epoch in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


def test_indices_depend_on_the_step_and_not_on_what_was_asked_before():
    forward = [batch_indices(1, n, 23, 4) for n in range(12)]
    backward = [batch_indices(1, n, 23, 4) for n in reversed(range(12))]
    np.testing.assert_array_equal(forward, backward[::-1])
    forward[0][:] = -1  # the caller's copy is his own
    assert batch_indices(1, 0, 23, 4).min() >= 0


def images(feed, plan, rows=slice(None)) -> list[np.ndarray]:
    """The images of every step, through `load` in a compiled function as a train step has it."""
    step = jax.jit(lambda data, request, i: load(data, jax.tree.map(lambda x: x[i], request)))
    return [
        step(feed.data, r, i) for r in feed.batches(plan, rows) for i in range(len(r["position"]))
    ]


@pytest.mark.parametrize("resident", [True, False])
def test_feed_yields_the_images_of_each_step(resident):
    feed = make_feed(IMAGE, 4, seed=1, resident=resident)
    assert feed.steps_per_epoch == 5
    expected = [IMAGE[batch_indices(1, n, 23, 4)] for n in range(7)]
    chex.assert_trees_all_equal(images(feed, PLAN), expected)


def test_resident_and_streamed_feeds_have_the_contracted_fields():
    resident, streamed = (make_feed(IMAGE, 4, 1, resident=r) for r in (True, False))
    assert set(resident.data) == {"image"} and streamed.data == {}
    a, b = (next(feed.batches([(0, 3)])) for feed in (resident, streamed))
    assert set(a) == {"position", "index"} and set(b) == {"position", "image"}
    chex.assert_shape([a["position"], a["index"], b["position"]], (3, 4))
    chex.assert_type([a["position"], a["index"], b["position"]], np.int32)
    chex.assert_shape(b["image"], (3, 4, 4, 3, 2))
    np.testing.assert_array_equal(a["position"], np.tile(np.arange(4), (3, 1)))
    np.testing.assert_array_equal(a["position"], b["position"])


def test_how_steps_are_grouped_changes_nothing():
    feed = make_feed(IMAGE, 4, 1, resident=False)
    chex.assert_trees_all_equal(images(feed, PLAN), images(feed, [(n, 1) for n in range(7)]))
    # as after a restart
    chex.assert_trees_all_equal(images(feed, PLAN)[3:], images(feed, [(3, 4)]))


@pytest.mark.parametrize("resident", [True, False])
def test_rows_of_all_processes_make_the_global_batch(resident):
    feed = make_feed(IMAGE, 6, 1, resident=resident)
    whole = list(feed.batches(PLAN))
    parts = [list(feed.batches(PLAN, slice(p * 2, p * 2 + 2))) for p in range(3)]
    for i, request in enumerate(whole):
        joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(part[i] for part in parts))
        chex.assert_trees_all_equal(joined, request)


class Recorder(np.ndarray):
    """An array that keeps the indices it is read by."""

    def __getitem__(self, index):
        self.seen.append(index)
        return np.asarray(self)[index]


def test_a_process_reads_only_its_own_rows():
    image = IMAGE.view(Recorder)
    image.seen = []
    list(make_feed(image, 6, 1, resident=False).batches([(0, 2)], slice(2, 4)))
    (index,) = image.seen
    np.testing.assert_array_equal(index, [batch_indices(1, n, 23, 6)[2:4] for n in range(2)])


def test_auto_is_resident_within_the_budget():
    for budget, keys in [(IMAGE.nbytes, {"image"}), (IMAGE.nbytes - 1, set()), (None, {"image"})]:
        assert set(make_feed(IMAGE, 4, 1, "auto", budget).data) == keys


def test_device_budget_is_a_share_of_what_the_device_tells(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    for stats, budget in [
        ({"bytes_limit": 800}, 200),
        (None, DEFAULT_BUDGET),
        ({}, DEFAULT_BUDGET),
    ]:
        monkeypatch.setattr(jax, "local_devices", lambda stats=stats: [Device(stats)])
        assert device_budget() == budget


@pytest.mark.parametrize("batch_size", [-1, 0, 24])
def test_batch_size_out_of_range(batch_size):
    with pytest.raises(
        UserError, match=f"batch_size: got {batch_size}, takes 1 to the 23 training images"
    ):
        make_feed(IMAGE, batch_size, 0)


def test_other_bad_values():
    with pytest.raises(UserError, match="seed: got -1"):
        make_feed(IMAGE, 4, -1)
    with pytest.raises(UserError, match="resident: got 'yes'"):
        make_feed(IMAGE, 4, 0, resident="yes")
    with pytest.raises(AssertionError):
        make_feed(IMAGE[..., 0], 4, 0)


# --- the thread -----------------------------------------------------------------------------------


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetch_keeps_order_and_runs_ahead_by_a_bounded_number():
    started = []

    def call(i):
        started.append(i)
        return i

    results = prefetch((lambda i=i: call(i) for i in itertools.count()), ahead=2)
    assert next(results) == 0
    deadline = time.monotonic() + 5
    while len(started) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert started == [0, 1, 2]
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    results.close()


def test_what_a_call_raises_reaches_the_consumer_in_its_turn():
    def fail():
        raise OSError("the disk is gone")

    results = prefetch([lambda: 1, lambda: 2, fail, lambda: 4])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)
    assert not prefetch_threads()


@pytest.mark.parametrize("end", ["exhausted", "closed", "forgotten"])
def test_the_thread_ends_with_its_consumer(end):
    feed = make_feed(IMAGE, 4, 1, resident=False)
    batches = feed.batches((n, 1) for n in (range(4) if end == "exhausted" else itertools.count()))
    next(batches)
    assert prefetch_threads()
    if end == "exhausted":
        assert len(list(batches)) == 3
    elif end == "closed":
        batches.close()
    else:
        del batches
        gc.collect()
    assert not prefetch_threads()
