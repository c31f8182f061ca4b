"""Batch normalisation that keeps nothing but its input for the gradient.

Numbers and names of parameters and statistics are those of `flax.linen.BatchNorm`. Automatic
differentiation of Flax's module keeps the centred input in float32 beside the input itself. At
batch 1024 in bfloat16, ResNet-18's two views then hold 15.8 GB for the gradient, and 8.3 GB here
(tests/test_batch_norm.py counts them). On a CPU the sums over the batch are `native.py`'s, which
read their input once; XLA's write what they add up to memory first.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.models.cpu import native

Arrays = tuple[jax.Array, ...]


class BatchNorm(nn.Module):
    """Normalise each channel of (B, ..., C) over the batch and all pixels, then scale and shift it.

    Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1, with PyTorch's constants. Statistics are
    float32, and keep their digits where the mean is large against the deviation. The running
    variance is the biased one, as in Flax. There is no forward-mode derivative. The native sums of
    a CPU have no second derivative either; `SSL_JAX_NATIVE=0` turns those off.
    """

    axis_name: str | None = None  # mapped axis over which the statistics are shared
    affine: bool = True  # whether there are parameters "scale" and "bias"
    dtype: jnp.dtype = jnp.float32  # of the output
    momentum: float = 0.9  # share of the running statistics that a step keeps
    epsilon: float = 1e-5  # added to the variance

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape) if self.affine else jnp.ones(shape)
        bias = self.param("bias", nn.initializers.zeros, shape) if self.affine else jnp.zeros(shape)
        if use_running_average:
            return _normalise(x, mean.value, var.value, self.epsilon, scale, bias).astype(
                self.dtype
            )
        axis_name = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_var = batch_norm(x, scale, bias, self.epsilon, axis_name, self.dtype)
        if not self.is_initializing():
            for running, batch in ((mean, batch_mean), (var, batch_var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        return y


def _batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (y, mean, variance) of x (..., C), with scale, bias, mean and variance (C,).

    y = scale (x - mean) / sqrt(variance + epsilon) + bias. No gradient flows through the returned
    mean and variance: what is computed from them counts as a constant.
    """
    mean, var = _statistics(x.astype(jnp.float32))
    if axis_name:
        means, within = lax.all_gather((mean, var), axis_name)  # (devices, C) each
        mean = jnp.mean(means, 0)
        var = jnp.mean(within + jnp.square(means - mean[None]), 0)
    return _normalise(x, mean, var, epsilon, scale, bias).astype(dtype), mean, var


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the biased variance, (C,) each, of x (B, ..., C) float32.

    E x² - (E x)² has no digits left where the mean is large against the deviation. So a shift is
    subtracted first: natively the mean of each chunk of rows, else that of one example.
    """

    def shifted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # var = E (x - k)² - (E (x - k))², both in one pass over x. The shift k changes rounding
        # alone. One example of B holds 1/B of the variance at most, (k - mean)² <= B var, so that B
        # roundings are lost at worst.
        shift = lax.stop_gradient(jnp.mean(x[:1], _pixels(x)))
        centred = x - _across(x, shift)
        mean, square = jnp.mean(centred, _pixels(x)), jnp.mean(centred * centred, _pixels(x))
        return shift + mean, jnp.maximum(0.0, square - mean * mean)

    return _on_cpu(lambda x: native.moments(_rows(x)), shifted, x)(x)


def _sums(x: jax.Array, g: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return Σ g and Σ g (x - mean), (C,) each, of x and g (B, ..., C) float32."""

    def by_xla(x: jax.Array, g: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(g, _pixels(x)), jnp.sum(g * (x - _across(x, mean)), _pixels(x))

    def own(x: jax.Array, g: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
        return native.gradient_sums(_rows(x), _rows(g), mean)

    return _on_cpu(own, by_xla, x)(x, g, mean)


def _on_cpu(own: Callable[..., Any], xla: Callable[..., Any], x: jax.Array) -> Callable[..., Any]:
    return native.on_cpu(own, xla, x.shape[-1]) if x.size else xla


batch_norm = jax.custom_vjp(_batch_norm, nondiff_argnums=(3, 4, 5))


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
    dtype: jnp.dtype,
) -> tuple[Arrays, Arrays]:
    """Return the outputs and what the backward pass needs."""
    y, mean, var = _batch_norm(x, scale, bias, epsilon, axis_name, dtype)
    return (y, mean, var), (x, mean, var, scale)


def _backward(
    epsilon: float, axis_name: str | None, dtype: jnp.dtype, saved: Arrays, gradients: Arrays
) -> Arrays:
    """Return the gradients with respect to x, scale and bias.

    With g the gradient of y, h the normalised x and means over the batch of all devices:
    dx = scale / sqrt(variance + epsilon) (g - mean(g) - h mean(g h)), dscale = Σ g h, dbias = Σ g.
    """
    x, mean, var, scale = saved
    inverse = lax.rsqrt(var + epsilon)
    wide, g = x.astype(jnp.float32), gradients[0].astype(jnp.float32)
    h = (wide - _across(x, mean)) * _across(x, inverse)
    dbias, of_centred = _sums(wide, g, mean)
    dscale = of_centred * inverse
    count = x.size // x.shape[-1]
    means = dbias / count, dscale / count
    of_g, of_gh = lax.pmean(means, axis_name) if axis_name else means
    dx = _across(x, scale * inverse) * (g - _across(x, of_g) - h * _across(x, of_gh))
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_forward, _backward)


def _normalise(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    epsilon: float,
    scale: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    centred = x.astype(jnp.float32) - _across(x, mean)
    return centred * _across(x, lax.rsqrt(var + epsilon) * scale) + _across(x, bias)


def _pixels(x: jax.Array) -> tuple[int, ...]:
    """Return all axes but the last."""
    return tuple(range(x.ndim - 1))


def _rows(x: jax.Array) -> jax.Array:
    """Return x (B, ..., C) as (N, C)."""
    return x.reshape(-1, x.shape[-1])


def _across(x: jax.Array, of_channels: jax.Array) -> jax.Array:
    """Return the values (C,) with as many dimensions as x has."""
    return jnp.expand_dims(of_channels, _pixels(x))
