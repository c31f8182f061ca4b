"""Square convolutions, with formulations of their own where XLA's are slow: on the CPU, in float32.

Elsewhere, and for shapes not named here, it is `lax.conv_general_dilated` and nothing else. What a CPU gets instead,
chosen by measurement (benchmarks/README.md): the value and both gradients of a square convolution from `native.py`, and
for each channel by itself, on few pixels, one matrix product for each channel, from all its pixels to all.

A convolution here has a gradient but, as any `jax.custom_vjp`, no forward-mode derivative (`jax.jvp`), and what runs
natively no second one; `SSL_JAX_NATIVE=0` has that.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.models.cpu import native

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Up to so many pixels, 49 multiplications for each are fewer in effect than all pixels times all; then no longer.
DENSE_PIXELS = 100


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """Takes the place of `lax.conv_general_dilated` in a Flax `Conv`: x (B, H, W, C), kernel (k, k, C, D).

    options: as Flax hands them over, in its layout. Anything but a plain convolution in float32, padded by k // 2 on
    all sides, goes to XLA as it is.
    """
    if _plain(x, kernel, strides, padding, options):
        return _convolve(x, kernel, strides[0])
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _plain(x, kernel, strides, padding, options) -> bool:
    size, stride = kernel.shape[0], strides[0]
    ones = all(options.get(name) in (None, 1, (1, 1)) for name in ("lhs_dilation", "rhs_dilation"))
    return (
        x.dtype == kernel.dtype == jnp.float32
        and x.size > 0
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
def _convolve(x, kernel, stride):
    xla = functools.partial(_xla, stride=stride)
    return _on_cpu(functools.partial(native.forward, stride=stride), xla, kernel.shape[3])(x, kernel)


def _convolve_forward(x, kernel, stride):
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, saved, gradient):
    def by_input(x, kernel, gradient):
        return native.input_gradient(gradient, kernel, stride)

    def by_kernel(x, kernel, gradient):
        return native.kernel_gradient(x, gradient, len(kernel), stride)

    def xla(place, x, kernel, gradient):
        return jax.vjp(functools.partial(_xla, stride=stride), x, kernel)[1](gradient)[place]

    x, kernel = saved
    return (
        _on_cpu(by_input, functools.partial(xla, 0), kernel.shape[2])(x, kernel, gradient),
        _on_cpu(by_kernel, functools.partial(xla, 1), kernel.shape[3])(x, kernel, gradient),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _on_cpu(own, xla, outputs):
    """`own` where this is compiled for a CPU, so many outputs suit it and it can be had; `xla` elsewhere.

    Beside an accelerator the CPU computes too little to compile anything for it.
    """
    if jax.default_backend() == "cpu" and native.suits(outputs) and native.available():
        return functools.partial(lax.platform_dependent, cpu=own, default=xla)
    return xla


def _xla(x, kernel, stride):
    padding = ((kernel.shape[0] // 2,) * 2,) * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


# --- Each channel by itself -------------------------------------------------------------------------------


def convolve_channels(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """Takes the place of `lax.conv_general_dilated` in a depthwise Flax `Conv`: x (B, H, W, C), kernel (k, k, 1, C).

    k odd, stride 1, padded by k // 2 on all sides. Few pixels in float32 are the CPU's own, the rest XLA's.
    """
    assert tuple(strides) == (1, 1) and tuple(map(tuple, padding)) == ((kernel.shape[0] // 2,) * 2,) * 2
    few = x.shape[1] * x.shape[2] <= DENSE_PIXELS
    return _channels(x, kernel) if few and x.dtype == kernel.dtype == jnp.float32 else _channels_xla(x, kernel)


@jax.custom_vjp
def _channels(x, kernel):
    return lax.platform_dependent(x, kernel, cpu=dense, default=_channels_xla)


def _channels_backward(saved, gradient):
    def pull(function):
        return lambda x, kernel, gradient: jax.vjp(function, x, kernel)[1](gradient)

    return lax.platform_dependent(*saved, gradient, cpu=pull(dense), default=pull(_channels_xla))


_channels.defvjp(lambda x, kernel: (_channels(x, kernel), (x, kernel)), _channels_backward)


def _channels_xla(x, kernel):
    pad = (kernel.shape[0] // 2,) * 2
    options = {"dimension_numbers": LAYOUT, "feature_group_count": x.shape[-1]}
    return lax.conv_general_dilated(x, kernel, (1, 1), (pad, pad), **options)


def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The depthwise convolution as a linear map of all pixels: y[p] = Σ_q x[q] k[q - p + k // 2], zero outside k."""
    size = kernel.shape[0]

    def places(side):  # (from, to, place in the kernel): one where they meet
        offset = jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + size // 2
        return jax.nn.one_hot(offset, size, dtype=x.dtype)

    rows, columns = places(x.shape[1]), places(x.shape[2])
    matrices = jnp.einsum("abi,xyj,ijc->caxby", rows, columns, kernel[:, :, 0])
    return jnp.einsum("naxc,caxby->nbyc", x, matrices)


# --- Patches that do not overlap --------------------------------------------------------------------------


def convolve_patches(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """Takes the place of `lax.conv_general_dilated` where the stride is the kernel's side and nothing is padded.

    One matrix product, x (B, H, W, C), kernel (k, k, C, D) -> (B, H // k, W // k, D); rows that are left over, as
    in any convolution, are not looked at.
    """
    k = kernel.shape[0]
    assert tuple(strides) == kernel.shape[:2] == (k, k) and tuple(map(tuple, padding)) == ((0, 0), (0, 0))
    height, width = x.shape[1] // k, x.shape[2] // k
    patches = x[:, : height * k, : width * k].reshape(len(x), height, k, width, k, x.shape[-1])
    return jnp.einsum("bhiwjc,ijcd->bhwd", patches, kernel)


__all__ = ["convolve", "convolve_channels", "convolve_patches"]
