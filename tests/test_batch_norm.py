"""Batch normalisation against float64 NumPy and Flax's own, and what it keeps for the gradient."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from native_library import check_definition, narrower, needs_native, x86

from ssl_jax.models import MLPHead, make_encoder, make_network
from ssl_jax.models.batch_norm import BatchNorm, batch_norm
from ssl_jax.models.cpu import native
from ssl_jax.models.layers import Norm
from ssl_jax.train.parallel import AXIS

# 5 channels are XLA's on every device. On a CPU the others are native: less than a chunk of rows,
# several with rows left over, lines of several rows, and more channels than sums.
SHAPES = [(16, 5), (6, 4, 3, 5), (7, 16), (43, 5, 5, 48), (70, 9, 1, 32), (40, 256)]


def draw(shape, dtype=jnp.float32):
    """x with another mean and spread in each channel, and weights for a sum of the outputs."""
    rng = np.random.default_rng(0)
    channels = np.arange(1, shape[-1] + 1)
    return (
        jnp.asarray(a, dtype)
        for a in (3 * channels + channels * rng.normal(size=shape), rng.normal(size=shape))
    )


def flax_norm(axis_name=None, affine=True, dtype=jnp.float32):
    return nn.BatchNorm(
        momentum=0.9,
        epsilon=1e-5,
        use_scale=affine,
        use_bias=affine,
        dtype=dtype,
        axis_name=axis_name,
    )


def started(module, x):
    """Its variables, with parameters and running statistics that are not the first ones."""
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    leaves, treedef = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        treedef, [np.float32(rng.uniform(0.5, 2, size=v.shape)) for v in leaves]
    )


def outcome(module, variables, x, weights):
    """(outputs, new statistics, gradients by parameters and x) in training."""

    def loss(params, x):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        y, new = module.apply(state, x, use_running_average=False, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y.astype(jnp.float32)) * weights.astype(jnp.float32)), (y, new)

    grads, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(variables.get("params", {}), x)
    return y, new, grads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_flax_computes_the_same(shape, affine):
    x, weights = draw(shape)
    variables = started(flax_norm(affine=affine), x)
    chex.assert_trees_all_equal_shapes(variables, started(BatchNorm(affine=affine), x))
    got = outcome(BatchNorm(affine=affine), variables, x, weights)
    expected = outcome(flax_norm(affine=affine), variables, x, weights)
    atol = 1e-5 if len(x) < 40 else 1e-4  # of sums over as many rows
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=atol)
    frozen = [
        m(affine=affine).apply(variables, x, use_running_average=True)
        for m in (BatchNorm, flax_norm)
    ]
    chex.assert_trees_all_close(*frozen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_by_definition(shape):
    """Value and gradients in float64: h = (x - mean) / sqrt(var + eps), y = scale h + bias."""
    x, weights = draw(shape)
    scale, bias = np.linspace(0.5, 2, shape[-1]), np.linspace(-1, 1, shape[-1])
    (y, mean, var), pull = jax.vjp(
        lambda *args: batch_norm(*args, 1e-5, None, jnp.float32),
        x,
        jnp.float32(scale),
        jnp.float32(bias),
    )
    dx, dscale, dbias = pull((weights, jnp.zeros_like(mean), jnp.zeros_like(var)))
    rows, g = (np.float64(a).reshape(-1, shape[-1]) for a in (x, weights))
    inverse = 1 / np.sqrt(rows.var(0) + 1e-5)
    h = (rows - rows.mean(0)) * inverse
    # The Jacobian of h, row by row: inverse (identity - 1/n - h h'/n).
    n = len(h)
    by_x = np.stack(
        [
            scale[c] * inverse[c] * (np.eye(n) - 1 / n - np.outer(h[:, c], h[:, c]) / n) @ g[:, c]
            for c in range(h.shape[1])
        ],
        axis=1,
    )
    expected = (scale * h + bias, rows.mean(0), rows.var(0), by_x, (g * h).sum(0), g.sum(0))
    for got, value in zip((y, mean, var, dx, dscale, dbias), expected, strict=True):
        chex.assert_trees_all_close(
            got.reshape(value.shape), np.float32(value), rtol=1e-4, atol=1e-4
        )


@needs_native
def test_what_runs_natively():
    def pulled(x, g):
        return jax.vjp(norm_of, x)[1]((g, x[0], x[0]))

    def calls(channels):
        x = jnp.ones((8, channels))
        text = jax.jit(pulled).lower(x, x).as_text()
        return [text.count(f"custom_call @ssl_jax_{name}") for name in ("moments", "gradient_sums")]

    assert calls(16) == [1, 1] and calls(5) == [0, 0]
    with native.portable():
        assert calls(32) == [0, 0]


@needs_native
@pytest.mark.slow
@x86
@narrower
def test_processors_with_narrower_vectors(flags, tmp_path):
    check_definition(__file__, len(SHAPES), flags, tmp_path)


@pytest.mark.parametrize("channels", [5, 16])
def test_what_is_not_finite_stays_so(channels):
    """One value of one channel: its statistics are lost, and no other's."""
    x = off_centre((64, channels), 1, 1)
    x[3, 2] = np.nan
    y, mean, var = norm_of(x)
    for value in (y[0], mean, var):
        np.testing.assert_array_equal(np.isnan(value), np.arange(channels) == 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_several_batches_at_once(shape):
    """Under vmap, as cells that train together have it, each batch is as by itself."""
    x, weights = (jnp.stack([a, 2 * a + 1, a[::-1]]) for a in draw(shape))

    def outcome(x, weights):
        (y, mean, var), pull = jax.vjp(norm_of, x)
        return y, mean, var, pull((weights, mean, var))

    one_by_one = [outcome(*each) for each in zip(x, weights, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_trees_all_close(jax.vmap(outcome)(x, weights), expected, rtol=1e-5, atol=1e-5)


def test_finite_differences():
    x, _ = draw((8, 3))
    norm = functools.partial(batch_norm, epsilon=1e-5, axis_name=None, dtype=jnp.float32)
    check_grads(
        lambda *args: norm(*args)[0], (x, jnp.ones(3), jnp.zeros(3)), 1, modes=["rev"], rtol=2e-2
    )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("synchronised", [True, False])
def test_on_four_devices(synchronised, affine):
    """Flax's numbers again, each device with its share of the batch."""
    axis_name = AXIS if synchronised else None
    x, weights = (a.reshape(4, 2, 4, 3, 5) for a in draw((8, 4, 3, 5)))
    variables = started(BatchNorm(affine=affine), x[0])
    got, expected = (
        jax.pmap(functools.partial(outcome, norm(axis_name, affine)), AXIS, in_axes=(None, 0, 0))(
            variables, x, weights
        )
        for norm in (BatchNorm, flax_norm)
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)
    means = np.asarray(got[1]["batch_stats"]["mean"])
    assert (np.ptp(means, axis=0).max() < 1e-6) == synchronised


def test_bfloat16_is_rounded_at_the_ends_only():
    x, weights = draw((6, 4, 3, 5), jnp.bfloat16)
    variables = started(BatchNorm(dtype=jnp.bfloat16), x)
    y, new, grads = outcome(BatchNorm(dtype=jnp.bfloat16), variables, x, weights)
    wide = outcome(BatchNorm(), variables, x.astype(jnp.float32), weights.astype(jnp.float32))
    assert (
        y.dtype == grads[1].dtype == jnp.bfloat16 and new["batch_stats"]["var"].dtype == jnp.float32
    )
    chex.assert_trees_all_equal(y, wide[0].astype(jnp.bfloat16))
    chex.assert_trees_all_close(new, wide[1], rtol=1e-6)
    for got, expected in zip(*map(jax.tree.leaves, (grads, wide[2])), strict=True):
        scale = float(jnp.max(jnp.abs(expected)))
        chex.assert_trees_all_close(
            got.astype(jnp.float32), expected.astype(jnp.float32), atol=0.03 * scale
        )


def test_second_derivatives():
    x, weights = draw((12, 3))

    def twice(module, variables, x):
        def loss(x):
            y, _ = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * weights)

        return jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(x)

    variables = started(BatchNorm(), x)
    chex.assert_trees_all_close(
        twice(BatchNorm(), variables, x), twice(flax_norm(), variables, x), rtol=1e-3, atol=1e-4
    )


def by_definition(x, epsilon=1e-5):
    """h, mean and variance of x (..., C) in float64."""
    rows = np.float64(x).reshape(-1, x.shape[-1])
    mean, var = rows.mean(0), rows.var(0)
    return (np.float64(x) - mean) / np.sqrt(var + epsilon), mean, var


def norm_of(x):
    """y, mean and variance, without scale and shift."""
    channels = x.shape[-1]
    return batch_norm(x, jnp.ones(channels), jnp.zeros(channels), 1e-5, None, x.dtype)


def off_centre(shape, mean, spread, seed=3):
    """Channels of this mean and deviation, as float32 holds them."""
    return np.float32(mean + spread * np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("mean, spread", [(300, 0.03), (-3e4, 30), (1e4, 1e-2), (1e-3, 1e-6)])
@pytest.mark.parametrize("shape", [(128, 7), (64, 16, 16, 7), (128, 16), (64, 16, 16, 32)])
def test_a_mean_far_above_the_deviation(shape, mean, spread):
    """What float32 holds of such channels comes out as float64 has it, but for the last bit of the
    mean.
    """
    x = off_centre(shape, mean, spread)
    y, got_mean, got_var = norm_of(x)
    h, true_mean, true_var = by_definition(x)
    last_bit = np.spacing(np.float32(abs(mean))) / np.sqrt(true_var + 1e-5).min()
    np.testing.assert_allclose(y, h, rtol=1e-4, atol=1e-4 + 1.5 * last_bit)
    np.testing.assert_allclose(got_var, true_var, rtol=1e-3)
    np.testing.assert_allclose(got_mean, true_mean, rtol=2e-7)
    np.testing.assert_allclose(
        np.std(y, (0, 1, 2)[: y.ndim - 1]), h.std(axis=(0, 1, 2)[: y.ndim - 1]), rtol=1e-3
    )


@pytest.mark.parametrize("channels", [3, 48])
def test_an_outlier_in_the_first_example(channels):
    """XLA's shift is the first example's mean. B roundings are the most that it can cost."""
    x = off_centre((256, channels), 0, 1e-3)
    x[0] = np.resize([1e3, -1e2, 1], channels)
    _, mean, var = norm_of(x)
    _, true_mean, true_var = by_definition(x)
    np.testing.assert_allclose(var, true_var, rtol=256 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(mean, true_mean, rtol=1e-5)


def test_a_mean_far_above_the_deviation_in_bfloat16():
    """300 + 0.03 is 300 in bfloat16: nothing is left to normalise. 4 more bits are seen."""
    x = jnp.asarray(off_centre((64, 4, 4, 2), 300, [0.03, 8]), jnp.bfloat16)
    y, _, _ = batch_norm(x, jnp.ones(2), jnp.zeros(2), 1e-5, None, jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(y[..., 0]), 0)
    h, _, _ = by_definition(np.float32(x))
    np.testing.assert_allclose(np.float32(y[..., 1]), h[..., 1], rtol=2**-7, atol=1e-3)


def test_a_mean_far_above_the_deviation_on_four_devices():
    """Shared statistics are those of all rows, each device with a mean of its own as well."""
    x = off_centre((4, 16, 3), 300, 0.03) + np.float32([0, 0.01, 0.02, 200])[:, None, None]
    x[:, :, 1] = off_centre((4, 16), 300, 0.03)
    norm = functools.partial(batch_norm, epsilon=1e-5, axis_name=AXIS, dtype=jnp.float32)
    y, _, var = jax.pmap(norm, AXIS, in_axes=(0, None, None))(x, jnp.ones(3), jnp.zeros(3))
    h, _, true_var = by_definition(x)
    np.testing.assert_allclose(y, h, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(var, np.tile(true_var, (4, 1)), rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("value", [0.0, 300.1, -1e4 / 3])
def test_a_constant_channel_is_zero(value, channels):
    """Its gradient is (g - mean(g)) / sqrt(epsilon)."""
    _, g = draw((12, channels))
    (y, mean, var), pull = jax.vjp(norm_of, jnp.full((12, channels), np.float32(value)))
    assert var[0] == 0 and not np.any(y)
    dx = pull((g, jnp.zeros_like(mean), jnp.zeros_like(var)))[0]
    chex.assert_trees_all_close(
        dx, (g - jnp.mean(g, 0, keepdims=True)) / np.float32(np.sqrt(1e-5)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "instance"])
def test_every_norm_keeps_its_digits(kind):
    """Those of one example as well: mean 300, deviation 0.03."""
    x = off_centre((4, 16, 16, 64), 300, 0.03)
    module = Norm(kind)
    y = np.asarray(
        module.apply(
            module.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"]
        )[0]
    )
    axes = {"batch": (0, 1, 2), "layer": (1, 2, 3), "instance": (1, 2)}
    wide = np.float64(x) - np.float64(x).mean(axes.get(kind, (1, 2)), keepdims=True)
    if kind == "group":  # 32 groups of 2 channels
        wide = np.float64(x).reshape(4, 16, 16, 32, 2)
        wide = (wide - wide.mean((1, 2, 4), keepdims=True)) / np.sqrt(
            wide.var((1, 2, 4), keepdims=True) + 1e-5
        )
        expected = wide.reshape(x.shape)
    else:
        expected = wide / np.sqrt(wide.var(axes[kind], keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-2)


def kept(batch):
    """Bytes that one view's pass through ResNet-18 keeps for the gradient, by the shapes alone."""
    network = make_network(
        make_encoder("resnet18", width=64, precision="bfloat16"),
        MLPHead(512, 128, dtype=jnp.bfloat16),
    )
    image = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    params, stats = jax.eval_shape(network.init, jax.random.key(0), image)

    def pullback(params, stats, image):
        return jax.vjp(lambda params: network.train(params, stats, image)[0], params)[1]

    return sum(
        x.size * x.dtype.itemsize
        for x in jax.tree.leaves(jax.eval_shape(pullback, params, stats, image))
    )


def test_what_a_large_batch_keeps():
    """Two views of 1024 images in bfloat16 leave almost half of 16 GB for all else."""
    assert 6e9 < 2 * kept(1024) < 8.5e9
