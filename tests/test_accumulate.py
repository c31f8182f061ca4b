"""A step from several micro-batches against that from the whole batch, and where both differ."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BATCH, DIM, SIDE, make_batch, make_parts, make_state, make_step

from ssl_jax.losses import LOSSES
from ssl_jax.models import make_classifier, make_network
from ssl_jax.optim import make_optimizer
from ssl_jax.train import parallel
from ssl_jax.train.accumulate import in_micro_batches
from ssl_jax.train.supervised import batch_key, init_supervised, make_supervised_step

KEY = jax.random.key(7)
BATCHES = [make_batch(i) for i in range(3)]


class Linear(nn.Module):
    """A trunk of one linear layer and, where asked for, a norm of each example by itself."""

    features: int = DIM
    norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.features, name="linear", dtype=self.dtype)(x.reshape(len(x), -1))
        return nn.LayerNorm(name="norm")(x) if self.norm else x


def make_parts_without_batch_norm(kind, norm=True, dtype=jnp.float32):
    """As in a real run: momentum, a rate and a target's rate that change from step to step."""
    parts = make_parts(kind)
    network = make_network(Linear(8, norm, dtype), Linear(DIM, dtype=dtype))
    optimizer = make_optimizer("momentum", lambda step: 0.1 / (1 + step), weight_decay=1e-3)
    return parts._replace(
        network=network, optimizer=optimizer, tau=lambda step: 1 - 0.2 / (1 + jnp.asarray(step))
    )


@functools.cache
def ends(count, kind="direct_pred", **options):
    """State and metrics after three steps of so many micro-batches each."""
    parts = make_parts_without_batch_norm(kind, **options)
    step = jax.jit(make_step(parts, accumulate=count, tracked=2, penalty="decoupled"))
    state, rows = make_state(parts), []
    for batch in BATCHES:
        state, metrics = step(state, batch, KEY)
        rows.append(metrics)
    return jax.device_get((state, rows))


@pytest.mark.parametrize(
    "kind, norm",
    [("direct_pred", False), pytest.param("optimal", True, marks=pytest.mark.slow)],
)
def test_equals_the_large_batch_without_batch_statistics(kind, norm):
    """Weights, optimizer, target, F and what the predictor makes of it, and all that is recorded.

    Rates and target change with the step, and W_p is written down at each: a second move of any of
    them within a step, or a part of the batch that is left out, shows from 1e-2 on.
    """
    whole, parts = ends(1, kind, norm=norm), ends(4, kind, norm=norm)
    assert parts[0].step == 3 and "view_correlation" in parts[1][0]
    chex.assert_trees_all_close(whole, parts, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_bfloat16_adds_up_in_float32():
    """Each example passes alone, so that projections, loss and F are those of the whole batch; only
    a gradient's sum is rounded to bfloat16 (2^-9) once a micro-batch.
    """
    (whole, rows), (parts, others) = (ends(count, dtype=jnp.bfloat16) for count in (1, 4))
    for name in ("loss", "relative_spread", "mean_share"):
        np.testing.assert_allclose(rows[0][name], others[0][name], rtol=1e-4, err_msg=name)
    assert {x.dtype for x in jax.tree.leaves(parts.params)} == {np.dtype(np.float32)}
    chex.assert_trees_all_close(whole.params, parts.params, rtol=0.05, atol=0.02)


def rows_of_micro_batch(batch, count):
    """The batch in an order in which each of `count` contiguous parts is one micro-batch."""
    return jax.tree.map(lambda x: np.concatenate([x[n::count] for n in range(count)]), batch)


def test_batch_norm_is_that_of_devices_which_do_not_share_it():
    """Four micro-batches on one device, and four devices with a micro-batch each."""
    parts = make_parts("direct_pred", momentum=0.9)
    one = jax.jit(make_step(parts, accumulate=4))(make_state(parts), BATCHES[0], KEY)
    step = jax.pmap(
        make_step(parts, axis_name=parallel.AXIS), parallel.AXIS, in_axes=(None, 0, None)
    )
    four = jax.tree.map(
        lambda x: x.reshape(4, -1, *x.shape[1:]), rows_of_micro_batch(BATCHES[0], 4)
    )
    state, metrics = jax.tree.map(lambda x: x[0], step(make_state(parts), four, KEY))
    chex.assert_trees_all_close(one[0], state, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one[1]["loss"], metrics["loss"], rtol=1e-5)


def test_devices_change_nothing():
    """Two micro-batches with shared statistics, on one device and on four."""
    results = []
    for count in (1, 4):
        used = jax.devices()[:count]
        axis = parallel.axis(used)
        parts = make_parts("direct_pred", momentum=0.9, axis_name=axis)
        run = parallel.parallelise(
            make_step(parts, axis_name=axis, accumulate=2), lambda data, b: b["image"], used
        )
        batch = jax.tree.map(lambda x: x[None], BATCHES[0])
        results.append(
            jax.device_get(run(jax.tree.map(jnp.copy, make_state(parts)), {}, batch, KEY))
        )
    (a, m), (b, n) = results
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(m["loss"], n["loss"], rtol=1e-5)


def test_memory_falls():
    """The activations are those of a micro-batch, which the gradient of the larger part keeps."""
    network = make_network(Linear(2048, True), Linear(DIM))
    parts = make_parts("direct_pred")._replace(network=network)
    shapes = jax.eval_shape(lambda: make_state(parts))
    batch = make_batch(0, 1024)

    def peak(count):
        program = jax.jit(make_step(parts, accumulate=count)).lower(shapes, batch, KEY).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert peak(8) < 0.4 * peak(1)


def test_means_and_rows_of_the_whole_batch():
    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)

    def compute(batch, n):
        return jnp.mean(batch["x"], axis=0), (2 * batch["x"], jnp.full(len(batch["x"]), n))

    mean, (rows, numbers) = in_micro_batches(compute, {"x": jnp.asarray(x)}, 3)
    np.testing.assert_allclose(mean, np.float64(x).mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(rows, 2 * x)
    np.testing.assert_array_equal(numbers, np.arange(12) % 3)


# --- Supervised -----------------------------------------------------------------------------------


def supervised_step(count, dropout):
    classifier = make_classifier(Linear(8), 4, dropout=dropout)
    optimizer = make_optimizer("momentum", 0.1)
    step = make_supervised_step(
        augment=lambda keys, image, target: ([image / 255], target),
        classifier=classifier,
        optimizer=optimizer,
        loss=LOSSES["softmax"],
        num_classes=4,
        accumulate=count,
    )
    image = jnp.zeros((2, SIDE, SIDE, 1))
    state = init_supervised(jax.random.key(0), image, classifier, optimizer)
    return jax.jit(step), state, classifier


def test_supervised_equals_the_large_batch():
    batch = BATCHES[0] | {"label": np.arange(BATCH, dtype=np.int32) % 4}
    results = []
    for count in (1, 4):
        step, state, _ = supervised_step(count, dropout=0.0)
        results.append(step(state, batch, KEY))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


def test_every_micro_batch_drops_out_by_itself():
    """Of equal images, so that only the key tells the micro-batches apart."""
    batch = {"image": np.full((BATCH, SIDE, SIDE, 1), 200, np.uint8)}
    batch |= {name: np.zeros(BATCH, np.int32) for name in ("label", "position")}
    step, state, classifier = supervised_step(2, dropout=0.5)
    losses = []
    for n in (0, 1):
        key = jax.random.fold_in(batch_key(KEY, state.step, None), n)
        images = batch["image"][n::2] / np.float32(255)
        logits, _ = classifier.train(state.params, state.stats, images, key)
        losses.append(np.mean(LOSSES["softmax"](logits, jax.nn.one_hot(batch["label"][n::2], 4))))
    np.testing.assert_allclose(step(state, batch, KEY)[1]["loss"], np.mean(losses), rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3
