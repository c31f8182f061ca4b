"""The CPU's convolutions against NumPy in float64 and against XLA's own, and what other platforms compile."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import lax
from jax.test_util import check_grads

from ssl_jax.models import layers
from ssl_jax.models.convolution import LAYOUT, _chunk, convolve, suits_winograd, winograd
from ssl_jax.models.layers import Norm, conv

# (batch, height, width, inputs, outputs, kernel size, stride)
SHAPES = {
    "winograd": (3, 8, 10, 64, 65, 3, 1),
    "winograd, some images at a time": (6, 32, 32, 64, 64, 3, 1),
    "direct": (5, 7, 6, 3, 4, 3, 1),
    "strided": (4, 8, 6, 5, 7, 3, 2),
    "strided, to one pixel": (4, 2, 2, 5, 7, 3, 2),
    "shortcut": (4, 8, 6, 5, 7, 1, 2),
    "1x1": (4, 5, 6, 5, 7, 1, 1),
    "patches, some images at a time": (3, 32, 32, 64, 8, 3, 1),
}


def draw(shape, seed=0):
    batch, height, width, inputs, outputs, size, stride = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, inputs))
    kernel = rng.normal(size=(size, size, inputs, outputs))
    gradient = rng.normal(size=(batch, height // stride, width // stride, outputs))
    return [np.float32(a) for a in (x, kernel, gradient)]


def ours(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return convolve(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=LAYOUT)


def patches(x, size, stride):
    """(B, h, w, C, size, size) in float64."""
    pad = size // 2
    padded = np.pad(np.float64(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]


def by_definition(x, kernel, gradient, stride):
    """Output and both gradients, in float64."""
    size = len(kernel)
    windows = patches(x, size, stride)
    y = np.einsum("bhwcij,ijcd->bhwd", windows, kernel, optimize=True)
    by_kernel = np.einsum("bhwcij,bhwd->ijcd", windows, np.float64(gradient), optimize=True)
    spread = np.zeros((x.shape[0], x.shape[1] + 2, x.shape[2] + 2, x.shape[3]))
    first, (height, width) = 1 - size // 2, gradient.shape[1:3]
    for i in range(size):
        for j in range(size):
            rows = slice(first + i, first + i + stride * height, stride)
            columns = slice(first + j, first + j + stride * width, stride)
            spread[:, rows, columns][:, :height, :width] += np.float64(gradient) @ np.float64(kernel[i, j]).T
    return y, spread[:, 1:-1, 1:-1], by_kernel


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_gradients_by_definition(shape):
    x, kernel, gradient = draw(shape)
    value, pull = jax.vjp(functools.partial(ours, stride=shape[-1]), x, kernel)
    for got, expected in zip((value, *pull(gradient)), by_definition(x, kernel, gradient, shape[-1]), strict=True):
        chex.assert_shape(got, expected.shape)
        assert np.max(np.abs(got - expected)) < 3e-6 * np.max(np.abs(expected))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_gradients_of_xla(shape):
    x, kernel, gradient = draw(shape, seed=1)
    pad = (shape[-2] // 2,) * 2

    def xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, (shape[-1],) * 2, (pad, pad), dimension_numbers=LAYOUT)

    theirs, their_pull = jax.vjp(xla, x, kernel)
    value, pull = jax.vjp(functools.partial(ours, stride=shape[-1]), x, kernel)
    for got, expected in zip((value, *pull(gradient)), (theirs, *their_pull(gradient)), strict=True):
        chex.assert_trees_all_close(got, expected, atol=3e-6 * float(jnp.max(jnp.abs(expected))))


@pytest.mark.parametrize("name", ["direct", "strided", "shortcut"])
def test_gradients_by_finite_differences(name):
    x, kernel, _ = draw(SHAPES[name])
    check_grads(functools.partial(ours, stride=SHAPES[name][-1]), (x, kernel), order=1, modes=["rev"], rtol=1e-2)


def test_shapes_are_chosen_as_meant():
    suited = {name for name, s in SHAPES.items() if s[-1] == 1 and suits_winograd(s[:4], (s[5], s[5], s[3], s[4]))}
    assert suited == {"winograd", "winograd, some images at a time"}
    assert [_chunk(12, n) for n in (0, 1, 5, 6, 100)] == [1, 1, 4, 6, 12]
    assert _chunk(7, 6) == 1


def test_winograd_multiplies_less():
    x, kernel, _ = draw(SHAPES["winograd"])
    text = str(jax.make_jaxpr(winograd)(x, kernel))
    assert text.count("dot_general") == 16 + 2, "16 places, and G g Gᵀ"
    assert "conv_general_dilated" not in text


ODD = {
    "bfloat16": (jnp.bfloat16, (1, 1), ((1, 1), (1, 1)), {}),
    "no padding": (jnp.float32, (1, 1), ((0, 0), (0, 0)), {}),
    "stride that does not divide": (jnp.float32, (2, 2), ((1, 1), (1, 1)), {}),
    "another stride": (jnp.float32, (3, 3), ((1, 1), (1, 1)), {}),
    "dilated": (jnp.float32, (1, 1), ((1, 1), (1, 1)), {"rhs_dilation": (2, 2)}),
    "precision asked for": (jnp.float32, (1, 1), ((1, 1), (1, 1)), {"precision": "highest"}),
}


@pytest.mark.parametrize("dtype, strides, padding, options", ODD.values(), ids=ODD)
def test_anything_else_is_left_to_xla(dtype, strides, padding, options):
    x, kernel = (jnp.asarray(a, dtype) for a in draw((2, 7, 7, 3, 4, 3, 1))[:2])
    options |= {"dimension_numbers": LAYOUT}
    traced = jax.make_jaxpr(lambda x, k: convolve(x, k, strides, padding, **options))(x, kernel)
    assert [e.primitive.name for e in traced.eqns] == ["conv_general_dilated"]
    got = convolve(x, kernel, strides, padding, **options)
    chex.assert_trees_all_equal(got, lax.conv_general_dilated(x, kernel, strides, padding, **options))


def lowered(platform, name):
    x, kernel, _ = draw(SHAPES[name])
    pull = jax.grad(lambda x, k: jnp.sum(jnp.sin(ours(x, k, SHAPES[name][-1]))), (0, 1))
    return jax.jit(pull).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", ["winograd", "strided"])
def test_only_the_cpu_gets_its_own(name):
    for platform in ("cuda", "tpu"):
        text = lowered(platform, name)
        assert text.count("stablehlo.convolution") == 3 and "stablehlo.while" not in text
    assert "stablehlo.while" in lowered("cpu", name)


def test_several_kernels_at_once():
    x, kernel, _ = draw(SHAPES["strided"])
    kernels = jnp.stack([kernel, 2 * kernel])

    def loss(kernel):
        return jnp.mean(ours(x, kernel, 2) ** 2)

    got = jax.vmap(jax.grad(loss))(kernels)
    expected = jnp.stack([jax.grad(loss)(k) for k in kernels])
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    """Every formulation once, at the smallest shapes that call for it."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        for i, (features, size, stride) in enumerate([(64, 3, 1), (64, 3, 1), (8, 3, 2), (8, 1, 2)]):
            x = conv(features, size, stride, kernel_init=layers.he_fan_out, name=f"conv{i}")(x)
            x = nn.relu(Norm("batch", self.axis_name, name=f"norm{i}")(x, train))
        return jnp.mean(x, axis=(1, 2))


def curve(monkeypatch, convolution, steps=20):
    """The losses of a short training from the same start, and its last parameters."""
    monkeypatch.setattr(layers, "convolve", convolution)
    parts = tiny.make_parts(kind="mlp", encoder=Wide(), rate=0.002)
    state = jax.jit(lambda key: tiny.fresh_state(parts, key))(jax.random.key(1))
    step = jax.jit(tiny.make_step(parts))
    losses = []
    for i in range(steps):
        state, metrics = step(state, tiny.make_batch(i), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return losses, state.params


@pytest.mark.parametrize("steps, tolerance", [(1, 1e-6), (10, 1e-4)])
def test_training_is_the_same(monkeypatch, steps, tolerance):
    losses, params = curve(monkeypatch, convolve, steps)
    expected, expected_params = curve(monkeypatch, lax.conv_general_dilated, steps)
    chex.assert_trees_all_close(losses, expected, atol=tolerance)
    chex.assert_trees_all_close(params, expected_params, atol=tolerance)
