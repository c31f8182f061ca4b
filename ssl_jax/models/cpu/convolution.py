"""Square convolutions for the CPU in float32, where XLA's are slow.

On other devices, and for other shapes, these functions call `lax.conv_general_dilated`. On a CPU
they use what was measured to be faster (benchmarks/README.md). A square convolution takes its value
and both gradients from `native.py`. A depthwise convolution of few pixels is one matrix product for
each channel, from all its pixels to all.

A convolution here has a gradient but, like every `jax.custom_vjp`, no forward-mode derivative
(`jax.jvp`). A native one has no second derivative either; `SSL_JAX_NATIVE=0` turns those off.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.models.cpu import native

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Up to so many pixels, a matrix product of all pixels with all takes less time than 49
# multiplications for each pixel.
DENSE_PIXELS = 100
Padding = Sequence[tuple[int, int]]  # (before, after) along both axes


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, **options: Any
) -> jax.Array:
    """Convolve, in place of `lax.conv_general_dilated` in a Flax `Conv`.

    XLA computes everything but a plain convolution in float32 that is padded by k // 2 on all
    sides.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, D).
        strides: along both axes.
        padding: along both axes.
        **options: the other arguments of `lax.conv_general_dilated`, as Flax gives them.

    Returns:
        (B, H / stride, W / stride, D).
    """
    if _plain(x, kernel, strides, padding, options):
        return _convolve(x, kernel, strides[0])
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _plain(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    options: dict[str, Any],
) -> bool:
    """Return whether `native.py` computes this convolution."""
    size, stride = kernel.shape[0], strides[0]
    ones = all(options.get(name) in (None, 1, (1, 1)) for name in ("lhs_dilation", "rhs_dilation"))
    return (
        x.dtype == kernel.dtype == jnp.float32
        and x.size > 0
        and kernel.size > 0
        and kernel.shape[0] == kernel.shape[1]
        and size % 2 == 1
        and tuple(strides) in ((1, 1), (2, 2))
        and tuple(map(tuple, padding)) == ((size // 2,) * 2,) * 2
        and all(side % stride == 0 for side in x.shape[1:3])
        and ones
        and options.get("feature_group_count", 1) == options.get("batch_group_count", 1) == 1
        and options.get("precision") is None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    xla = functools.partial(_xla, stride=stride)
    return native.on_cpu(functools.partial(native.forward, stride=stride), xla, kernel.shape[3])(
        x, kernel
    )


def _convolve_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients with respect to x and kernel."""

    def by_input(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return native.input_gradient(gradient, kernel, stride)

    def by_kernel(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return native.kernel_gradient(x, gradient, len(kernel), stride)

    def xla(argument: int, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(functools.partial(_xla, stride=stride), x, kernel)[1](gradient)[argument]

    x, kernel = saved
    return (
        native.on_cpu(by_input, functools.partial(xla, 0), kernel.shape[2])(x, kernel, gradient),
        native.on_cpu(by_kernel, functools.partial(xla, 1), kernel.shape[3])(x, kernel, gradient),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = kernel.shape[0] // 2
    padding = ((pad, pad), (pad, pad))
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


# --- Depthwise: each channel by itself ------------------------------------------------------------


def convolve_depthwise(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, **options: Any
) -> jax.Array:
    """Convolve each channel by itself, in place of `lax.conv_general_dilated` in a Flax `Conv`.

    On a CPU, images of at most DENSE_PIXELS pixels in float32 are a matrix product. XLA computes
    the rest.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, 1, C), k odd.
        strides: (1, 1).
        padding: k // 2 on all sides.
        **options: the other arguments of `lax.conv_general_dilated`, unused.

    Returns:
        (B, H, W, C).
    """
    pad = (kernel.shape[0] // 2,) * 2
    assert tuple(strides) == (1, 1) and tuple(map(tuple, padding)) == (pad, pad)
    few = x.shape[1] * x.shape[2] <= DENSE_PIXELS
    if few and x.dtype == kernel.dtype == jnp.float32:
        return _depthwise(x, kernel)
    return _depthwise_xla(x, kernel)


@jax.custom_vjp
def _depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=dense, default=_depthwise_xla)


def _depthwise_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients with respect to x and kernel."""

    def pullback(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        return lambda x, kernel, gradient: jax.vjp(function, x, kernel)[1](gradient)

    return lax.platform_dependent(
        *saved, gradient, cpu=pullback(dense), default=pullback(_depthwise_xla)
    )


_depthwise.defvjp(lambda x, kernel: (_depthwise(x, kernel), (x, kernel)), _depthwise_backward)


def _depthwise_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pad = kernel.shape[0] // 2
    padding = ((pad, pad), (pad, pad))
    options = {"dimension_numbers": LAYOUT, "feature_group_count": x.shape[-1]}
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, **options)


def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute the depthwise convolution as a matrix product over all pixels.

    y[p] = Σ_q x[q] k[q - p + k // 2], with k zero outside its support. x is (B, H, W, C), the
    kernel (k, k, 1, C).
    """
    size = kernel.shape[0]

    def places(side: int) -> jax.Array:
        """Return (from, to, place in the kernel): 1 where the kernel's place connects the two."""
        offset = jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + size // 2
        return jax.nn.one_hot(offset, size, dtype=x.dtype)

    rows, columns = places(x.shape[1]), places(x.shape[2])
    matrices = jnp.einsum("abi,xyj,ijc->caxby", rows, columns, kernel[:, :, 0])
    return jnp.einsum("naxc,caxby->nbyc", x, matrices)


# --- Patches that do not overlap ------------------------------------------------------------------


def convolve_patches(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, **options: Any
) -> jax.Array:
    """Convolve patches that do not overlap, in place of `lax.conv_general_dilated`.

    This is one matrix product. As in any convolution, rows and columns that do not fill a patch are
    left out.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, D).
        strides: (k, k).
        padding: zero on all sides.
        **options: the other arguments of `lax.conv_general_dilated`, unused.

    Returns:
        (B, H // k, W // k, D).
    """
    k = kernel.shape[0]
    assert tuple(strides) == kernel.shape[:2] == (k, k)
    assert tuple(map(tuple, padding)) == ((0, 0), (0, 0))
    height, width = x.shape[1] // k, x.shape[2] // k
    batch, channels = x.shape[0], x.shape[-1]
    patches = x[:, : height * k, : width * k].reshape(batch, height, k, width, k, channels)
    return jnp.einsum("bhiwjc,ijcd->bhwd", patches, kernel)


__all__ = ["convolve", "convolve_depthwise", "convolve_patches"]
