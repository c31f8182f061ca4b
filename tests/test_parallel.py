"""Four devices compute what one computes; replicas are equal; two processes end where a single one
ends.
"""

import functools
import json
import socket

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import TINY, finish_command, last_parameters, start_command
from tiny import SIDE, make_batch, make_parts, make_state, make_step

from ssl_jax.augment.views import make_recipe, make_views
from ssl_jax.errors import UserError
from ssl_jax.train import parallel

STEPS = 3
BATCHES = [make_batch(i) for i in range(STEPS)]


def load(data, batch):
    return batch["image"]


def key():
    """A new one each time: the strict mode takes a key that two programs consume for a mistake."""
    return jax.random.key(11)


def stacked(batches):
    return jax.tree.map(lambda *x: np.stack(x), *batches)


@functools.cache
def program(devices, real=False, size=1):
    """(parts, run) on so many devices, of so many steps a call.

    real: convolutions and random crops; else the quickest there is.
    """
    encoder = "convnet_digits" if real else "flat"
    used = jax.devices()[:devices]
    parts = make_parts("direct_pred", encoder=encoder, momentum=0.9, axis_name=parallel.axis(used))
    views = make_views(make_recipe("digits", jitter=0.0), SIDE) if real else None
    step = make_step(parts, views, parallel.axis(used))
    return parts, parallel.parallelise(step, load, used, size)


def train(run, state, calls):
    """The state after `calls`, lists of batches, and the metrics of every step."""
    rows = []
    for batches in calls:
        state, metrics = run(state, {}, stacked(batches), key())
        rows.append(metrics)
    return jax.device_get(state), jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(rows))


def copy(state):
    """The program donates what it is given."""
    return jax.tree.map(jnp.copy, state)


# --- One program on many devices ------------------------------------------------------------------


def test_four_devices_compute_what_one_computes():
    """With augmentation and synchronised BatchNorm. Only the order of float32 sums differs, and
    three steps of momentum at rate 0.1 let rounding of 1e-7 grow: parameters of size 1 agree to
    1e-4, a lost or doubled gradient, or statistics of one device alone, show from 1e-2 on.
    """
    parts, one = program(1, real=True)
    state = make_state(parts)
    ends = [
        train(run, copy(state), [[b] for b in BATCHES]) for run in (one, program(4, real=True)[1])
    ]
    (a, m), (b, n) = ends
    chex.assert_trees_all_close(a.params, b.params, atol=1e-4)
    chex.assert_trees_all_close(
        a._replace(opt_state=0), b._replace(opt_state=0), atol=1e-4, rtol=1e-4
    )
    np.testing.assert_allclose(m["loss"], n["loss"], atol=1e-5)
    moved = jax.tree.map(
        lambda x, y: float(np.abs(x - y).max()), state.params["encoder"], a.params["encoder"]
    )
    assert min(jax.tree.leaves(moved)) > 1e-2


def test_replicas_are_equal():
    """`out_axes=None` takes one replica on trust; here all four are looked at."""
    parts = make_parts("direct_pred", momentum=0.9, axis_name=parallel.AXIS)
    step = jax.pmap(
        make_step(parts, axis_name=parallel.AXIS),
        parallel.AXIS,
        in_axes=(None, 0, None),
        out_axes=0,
    )
    split = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), BATCHES[0])
    state, metrics = jax.device_get(step(make_state(parts), split, key()))
    for leaf in jax.tree.leaves((state, metrics)):
        assert leaf.shape[0] == 4
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


@pytest.mark.slow
def test_several_steps_a_call_are_the_same_steps():
    parts, single = program(4)
    _, several = program(4, size=STEPS)
    state = make_state(parts)
    (a, m), (b, n), (c, o) = (
        train(run, copy(state), calls)
        for run, calls in (
            (single, [[b] for b in BATCHES]),
            (several, [BATCHES]),
            (several, [BATCHES[:1], BATCHES[1:]]),
        )
    )
    chex.assert_trees_all_equal((b, n), (c, o))  # the same bits, however the run is cut
    assert m["loss"].shape == n["loss"].shape == (STEPS,)
    assert a.step == b.step == STEPS
    np.testing.assert_allclose(m["loss"], n["loss"], atol=1e-5)
    chex.assert_trees_all_close(a, b, atol=1e-5, rtol=1e-5)


def test_state_is_donated_and_comes_back_without_a_device_axis():
    parts, run = program(4)
    given = parallel.replicate(make_state(parts), jax.devices())
    state, _ = run(given, {}, stacked(BATCHES[:1]), key())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, make_state(parts))


def test_one_device_averages_with_nobody(monkeypatch):
    assert (
        parallel.axis(jax.devices()[:1]) is None
        and parallel.axis(jax.devices()[:2]) == parallel.AXIS
    )
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parallel.axis(jax.devices()[:1]) == parallel.AXIS


# --- Counting devices, rows, steps ----------------------------------------------------------------


def test_pick_devices():
    assert parallel.pick_devices(0) == jax.devices()
    assert parallel.pick_devices(2) == jax.devices()[:2]
    for count in (-1, 5):
        with pytest.raises(UserError, match=rf"^devices: got {count}, .* 4"):
            parallel.pick_devices(count)


def test_several_processes_use_all_their_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert len(parallel.pick_devices(0)) == len(parallel.pick_devices(4)) == 4
    with pytest.raises(UserError, match="^devices: got 2; several processes"):
        parallel.pick_devices(2)


def test_per_device(monkeypatch):
    assert parallel.per_device(12, jax.devices()) == 3
    for size in (0, -4, 6):
        with pytest.raises(UserError, match=f"^batch_size: got {size}, .* 4 devices"):
            parallel.per_device(size, jax.devices())
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert parallel.per_device(24, jax.devices()) == 2
    with pytest.raises(UserError, match="12 devices"):
        parallel.per_device(16, jax.devices())


def test_steps_per_call():
    assert parallel.steps_per_call("auto", jax.devices()) == 1
    assert parallel.steps_per_call(7, jax.devices()) == 7
    for value in ("many", 0, -2, 1.5):
        with pytest.raises(UserError, match=f"^steps_per_call: got {value!r}"):
            parallel.steps_per_call(value, jax.devices())


def test_processes_share_the_rows_of_the_batch(monkeypatch):
    rows = np.arange(12)
    np.testing.assert_array_equal(rows[parallel.process_rows(12)], rows)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(rows[parallel.process_rows(12)])
    np.testing.assert_array_equal(np.stack(shares), rows.reshape(3, 4))


def test_any_process_alone_is_itself():
    assert parallel.any_process(True) and not parallel.any_process(False)


# --- Two processes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_end_where_one_ends(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    fields = [*TINY, "--config.epochs=1"]
    join = [f"--coordinator=localhost:{port}", "--processes=2"]
    started = [start_command(tmp_path / "two", *fields, *join, f"--process={i}") for i in range(2)]
    started.append(start_command(tmp_path / "one", *fields))
    first, second, _ = (finish_command(process) for process in started)
    assert "results in" in first and "results in" not in second and "loss" not in second
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
    )
    assert one["steps"] == two["steps"] == 4
    assert one["device"].startswith("1 x") and two["device"].startswith("2 x")
    # Sums of gradients and BatchNorm statistics in another order, over four steps.
    chex.assert_trees_all_close(
        last_parameters(tmp_path / "one"), last_parameters(tmp_path / "two"), atol=1e-4
    )
    lines = (tmp_path / "two" / "metrics.csv").read_text().splitlines()
    assert len(lines) == len((tmp_path / "one" / "metrics.csv").read_text().splitlines())
