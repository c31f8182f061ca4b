"""Square convolutions, with formulations of their own where XLA's are slow: on the CPU, in float32.

Elsewhere, and for shapes not named here, it is `lax.conv_general_dilated` and nothing else. What a CPU gets instead,
each chosen by measurement (benchmarks/README.md):

- 3x3, stride 1, many channels: Winograd's F(2x2, 3x3), 16 products where the definition has 36, and a gradient with
  respect to the input that is the same convolution with the kernel turned round;
- gradient with respect to the kernel: the patches of a few images at a time, times the output's gradient. XLA
  transposes whole activations first, so that the batch stands where channels stood;
- gradient with respect to the input, stride 2: one small convolution for each parity of row and column, where XLA
  convolves an image of which three pixels in four are zeros;
- each channel by itself, on few pixels: one matrix product for each channel, from all its pixels to all.

A convolution here has a gradient but, as any `jax.custom_vjp`, no forward-mode derivative (`jax.jvp`).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
# What one round of a loop works on should stay in the caches of a core or two; see benchmarks/README.md.
WINOGRAD_BYTES = 8 << 20
PATCHES_BYTES = 5 << 20
# Up to so many pixels, 49 multiplications for each are fewer in effect than all pixels times all; then no longer.
DENSE_PIXELS = 100


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """Takes the place of `lax.conv_general_dilated` in a Flax `Conv`: x (B, H, W, C), kernel (k, k, C, D).

    options: as Flax hands them over. Anything but a plain convolution in float32, padded by k // 2 on all sides,
    goes to XLA as it is.
    """
    if _plain(x, kernel, strides, padding, options):
        return _convolve(x, kernel, strides[0])
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _plain(x, kernel, strides, padding, options) -> bool:
    size, stride = kernel.shape[0], strides[0]
    ones = all(options.get(name) in (None, 1, (1, 1)) for name in ("lhs_dilation", "rhs_dilation"))
    return (
        x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[:2] in ((1, 1), (3, 3))
        and tuple(strides) in ((1, 1), (2, 2))
        and tuple(map(tuple, padding)) == ((size // 2,) * 2,) * 2
        and all(side % stride == 0 for side in x.shape[1:3])
        and ones
        and options.get("feature_group_count", 1) == options.get("batch_group_count", 1) == 1
        and options.get("precision") is None
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, stride):
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(forward, stride=stride), default=functools.partial(_xla, stride=stride)
    )


def _convolve_forward(x, kernel, stride):
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, saved, gradient):
    def cpu(x, kernel, gradient):
        by_input = input_gradient(gradient, kernel, stride)
        return by_input, kernel_gradient(x, gradient, kernel.shape[0], stride)

    def default(x, kernel, gradient):
        return jax.vjp(functools.partial(_xla, stride=stride), x, kernel)[1](gradient)

    return lax.platform_dependent(*saved, gradient, cpu=cpu, default=default)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _xla(x, kernel, stride):
    return _padded(x, kernel, stride, ((kernel.shape[0] // 2,) * 2,) * 2)


def _padded(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """(B, H, W, C), (k, k, C, D) -> (B, H / stride, W / stride, D), padded by k // 2."""
    if stride == 1 and suits_winograd(x.shape, kernel.shape):
        per_image = 4 * x[0].size * x.dtype.itemsize
        return _by_chunks(functools.partial(winograd, kernel=kernel), x, WINOGRAD_BYTES // per_image)
    return _xla(x, kernel, stride)


# --- Winograd ---------------------------------------------------------------------------------------------


def suits_winograd(shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Whether it is ahead of the direct form: below 64 channels, or with few tiles, the transforms cost more."""
    _, height, width, _ = shape
    size, _, inputs, outputs = kernel_shape
    even = height % 2 == width % 2 == 0
    return size == 3 and even and min(height, width) >= 8 and 64 <= min(inputs, outputs)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3x3 convolution, stride 1, padded by 1, with 16 products for 4 outputs: (B, H, W, C) -> (B, H, W, D).

    F(2x2, 3x3) of Lavin and Gray 2016 (arXiv 1509.09308), section 4.1: Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A over tiles d
    of 4x4 inputs that overlap by 2, summed over the channels by one matrix product for each of the 16 places.
    """
    batch, height, width, _ = x.shape
    outputs = kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    tiles = _both_ways(_spread_input, tiles)
    g = jnp.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], x.dtype)
    kernels = jnp.einsum("ai,bj,ijcd->abcd", g, g, kernel)
    products = [[jnp.einsum("bhwc,cd->bhwd", tiles[a][b], kernels[a, b]) for b in range(4)] for a in range(4)]
    y = _both_ways(_gather_output, products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)  # (B, H/2, 2, W/2, 2, D)
    return y.reshape(batch, height, width, outputs)


def _spread_input(d):
    """Bᵀ d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _gather_output(m):
    """Aᵀ m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _both_ways(transform, grid):
    """T grid Tᵀ for a grid given as a list of rows."""
    rows = [transform(list(row)) for row in grid]  # along the second index
    columns = [transform(list(column)) for column in zip(*rows, strict=True)]  # then along the first
    return [list(row) for row in zip(*columns, strict=True)]


# --- Gradients --------------------------------------------------------------------------------------------


def input_gradient(gradient: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """From the output's gradient (B, h, w, D) to that of the input, (B, stride h, stride w, C)."""
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if stride == 1:
        return forward(gradient, turned, 1)
    if len(kernel) == 1:
        dilated = _xla(gradient, turned, 1)
        return lax.pad(dilated, jnp.zeros((), gradient.dtype), [(0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)])
    # y[o] = Σ x[2o + i - 1] k[i]: an even place of the input met only k[1], an odd one k[2] and k[0].
    even, odd = slice(1, 2), slice(0, 3, 2)
    after = {1: (0, 0), 2: (0, 1)}
    phases = [[turned[a, b] for b in (even, odd)] for a in (even, odd)]
    parts = [[_padded(gradient, k, 1, (after[len(k)], after[k.shape[1]])) for k in row] for row in phases]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2)  # (B, h, 2, w, 2, C)
    batch, height, width, _ = gradient.shape
    return whole.reshape(batch, 2 * height, 2 * width, kernel.shape[2])


def kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """Σ over images and places of patch ⊗ gradient: (B, H, W, C), (B, h, w, D) -> (size, size, C, D)."""
    batch, height, width, outputs = gradient.shape
    inputs = x.shape[-1]
    pad = size // 2
    per_image = height * width * size**2 * inputs * x.dtype.itemsize

    def of_some(images, gradient):
        images = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        ends = (stride * (height - 1) + 1, stride * (width - 1) + 1)
        shifted = [
            images[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(size) for j in range(size)
        ]
        return jnp.einsum("bhwp,bhwd->pd", jnp.concatenate(shifted, axis=-1), gradient)

    some = _chunk(batch, PATCHES_BYTES // per_image)
    chunks = [a.reshape(batch // some, some, *a.shape[1:]) for a in (x, gradient)]
    start = jnp.zeros((size**2 * inputs, outputs), x.dtype)
    total, _ = lax.scan(lambda total, chunk: (total + of_some(*chunk), None), start, chunks)
    return total.reshape(size, size, inputs, outputs)


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


# --- A few images at a time -------------------------------------------------------------------------------


def _by_chunks(function, x, at_most):
    """function(x), over as many images at once as `at_most` allows."""
    some = _chunk(len(x), at_most)
    if some == len(x):
        return function(x)
    y = lax.map(function, x.reshape(len(x) // some, some, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def _chunk(batch: int, at_most: int) -> int:
    """The largest divisor of `batch` that is at most `at_most`, and at least 1."""
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, at_most))


__all__ = ["convolve", "convolve_channels", "convolve_patches"]
