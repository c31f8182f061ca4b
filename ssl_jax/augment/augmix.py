"""AugMix: an image mixed with chains of simple operations on itself.

Source: Hendrycks et al. 2020, arXiv 1912.02781.

An image is float32 in [0, 1] of shape (H, W, C) and stays so. The nine operations agree with
Pillow's, up to Pillow's rounding to 8 bits after each one. Strengths are those of the authors'
code. Colour, contrast, brightness and sharpness are left out, as in the paper: they are among the
corruptions that it tests on.

Four operations map pixel values. The other five are one affine resampling with five kinds of
coefficients: a `switch` under `vmap` computes every branch, so that each step of a chain costs one
resampling instead of five.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssl_jax.augment.colour import eight_bits, solarize
from ssl_jax.types import Scalar

WIDTH = 3  # chains per image
DEPTH = 3  # largest number of operations per chain; 1 to DEPTH with equal probability


def random_augmix(key: jax.Array, image: jax.Array, severity: float = 3) -> jax.Array:
    """Mix the image with three random chains of operations.

    The result is (1 - m) image + m sum_i w_i chain_i(image) with m ~ U(0, 1) and w ~ Dirichlet(1,
    1, 1): algorithm 1 of the paper with its alpha = 1, where Beta(1, 1) is uniform and exponentials
    over their sum are Dirichlet(1, ..., 1).

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1].
        severity: upper bound of the operations' levels, in [1, 10].

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    chain_key, weight_key, share_key = jax.random.split(key, 3)
    chain_keys = jax.random.split(chain_key, WIDTH)
    chains = jax.vmap(lambda key: random_chain(key, image, severity))(chain_keys)
    weights = jax.random.exponential(weight_key, (WIDTH,))
    return augmix(image, chains, weights / weights.sum(), jax.random.uniform(share_key))


def augmix(image: jax.Array, chains: jax.Array, weights: jax.Array, share: Scalar) -> jax.Array:
    """Return (1 - share) image + share sum_i weights_i chains_i.

    Args:
        image: (H, W, C).
        chains: (WIDTH, H, W, C), the outputs of the chains.
        weights: (WIDTH,), convex weights of the chains.
        share: () in [0, 1], the weight of the mixed chains.

    Returns:
        (H, W, C).
    """
    mixed = jnp.sum(weights[:, None, None, None] * chains, axis=0)
    return (1 - share) * image + share * mixed


def random_chain(key: jax.Array, image: jax.Array, severity: float) -> jax.Array:
    """Apply 1 to DEPTH random operations one after the other.

    Each is any of the nine with equal probability, at a level U(0.1, severity) and with a random
    sign.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1].
        severity: upper bound of the levels, in [1, 10].

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    depth, which, level, sign = jnp.split(
        jax.random.uniform(key, (1 + 3 * DEPTH,)), (1, 1 + DEPTH, 1 + 2 * DEPTH)
    )
    active = jnp.arange(DEPTH) < 1 + jnp.floor(depth * DEPTH)
    which = jnp.floor(which * (len(VALUE_OPERATIONS) + len(AFFINE_OPERATIONS))).astype(jnp.int32)
    level, sign = 0.1 + level * (severity - 0.1), jnp.where(sign < 0.5, -1.0, 1.0)

    def step(image: jax.Array, draw: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        active, which, level, sign = draw
        return jnp.where(active, apply_operation(image, which, level, sign), image), None

    return jax.lax.scan(step, image, (active, which, level, sign))[0]


def apply_operation(
    image: jax.Array, which: jax.Array, level: jax.Array, sign: jax.Array
) -> jax.Array:
    """Apply operation number `which` of (*VALUE_OPERATIONS, *AFFINE_OPERATIONS).

    Args:
        image: (H, W, C) float32 in [0, 1].
        which: () int32, the number of the operation.
        level: () in [0, 10), its strength.
        sign: () -1 or 1, the direction of an affine operation.

    Returns:
        (H, W, C) float32 in [0, 1].
    """

    def resample(image: jax.Array, level: jax.Array) -> jax.Array:
        coefficients = jnp.stack(
            [kind(image.shape, level, sign) for kind in AFFINE_OPERATIONS.values()]
        )
        return affine(image, coefficients[jnp.maximum(which - len(VALUE_OPERATIONS), 0)])

    return jax.lax.switch(
        jnp.minimum(which, len(VALUE_OPERATIONS)),
        [*VALUE_OPERATIONS.values(), resample],
        image,
        level,
    )


# --- Operations on values: each channel by itself -------------------------------------------------


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretch each channel to [0, 1]; leave a constant channel as it is."""
    low, high = image.min(axis=(0, 1), keepdims=True), image.max(axis=(0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1.0), image)


def equalize(image: jax.Array) -> jax.Array:
    """Map each channel through its cumulative histogram of 256 values, as `ImageOps.equalize` does.

    Value v becomes (s // 2 + number of pixels below v) // s of 255, at a step s = (H W - number of
    the brightest pixels) // 255. Where s = 0 (a constant channel, or fewer than 256 pixels) the
    channel stays.
    """
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel: jax.Array) -> jax.Array:
    value = eight_bits(channel)
    count = jnp.zeros(256, jnp.int32).at[value].add(1)
    step = (value.size - count[value.max()]) // 255
    table = (step // 2 + jnp.cumsum(count) - count) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255)[value] / 255, channel)


def posterize(image: jax.Array, bits: jax.Array | int) -> jax.Array:
    """Keep the first `bits` of the 8 bits of each value."""
    value = eight_bits(image)
    return (value - value % jnp.left_shift(1, 8 - bits)) / 255


# --- Affine operations ----------------------------------------------------------------------------
# Output pixel (x, y) is looked up at (a x + b y + c, d x + e y + f), as in Pillow's AFFINE. Each
# function after `affine` returns the coefficients (6,) = a, b, c, d, e, f.


def affine(image: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Resample bilinearly by `coefficients` (6,) = a, b, c, d, e, f.

    Pillow's `Image.transform(size, AFFINE, coefficients, BILINEAR)`: pixel i covers [i, i + 1). A
    position outside the image gives 0. In the outer half of an edge pixel its own value is taken.
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = coefficients
    y, x = jnp.mgrid[:height, :width] + 0.5
    x, y = a * x + b * y + c, d * x + e * y + f
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_weight, lower_weight = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        rows, columns = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return image[rows.astype(jnp.int32), columns.astype(jnp.int32)]

    upper = (1 - right_weight) * at(top, left) + right_weight * at(top, left + 1)
    lower = (1 - right_weight) * at(top + 1, left) + right_weight * at(top + 1, left + 1)
    inside = (0 <= x) & (x < width) & (0 <= y) & (y < height)
    return jnp.where(inside[..., None], (1 - lower_weight) * upper + lower_weight * lower, 0.0)


def rotation(shape: tuple[int, ...], degrees: Scalar) -> jax.Array:
    """Rotate counter-clockwise about the centre of an image of `shape` (H, W, ...)."""
    angle, x, y = jnp.deg2rad(degrees), shape[1] / 2, shape[0] / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y])


def shear_x(slope: Scalar) -> jax.Array:
    """Look up each row y at x + slope y."""
    return jnp.array([1.0, slope, 0.0, 0.0, 1.0, 0.0])


def shear_y(slope: Scalar) -> jax.Array:
    """Look up each column x at y + slope x."""
    return jnp.array([1.0, 0.0, 0.0, slope, 1.0, 0.0])


def translation(x: Scalar, y: Scalar) -> jax.Array:
    """Look x pixels to the right and y pixels down, which moves the picture left and up."""
    return jnp.array([1.0, 0.0, x, 0.0, 1.0, y])


# --- Strengths of the authors' code: largest strength times level / 10, counts rounded down -------


def _whole(level: jax.Array, largest: float) -> jax.Array:
    return jnp.floor(level * largest / 10)


VALUE_OPERATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    # name -> operation(image, level)
    "autocontrast": lambda image, level: autocontrast(image),
    "equalize": lambda image, level: equalize(image),
    "posterize": lambda image, level: posterize(image, 4 - _whole(level, 4).astype(jnp.int32)),
    "solarize": lambda image, level: solarize(image, 256 - _whole(level, 256)),
}
AFFINE_OPERATIONS: dict[str, Callable[[tuple[int, ...], jax.Array, jax.Array], jax.Array]] = {
    # name -> coefficients(shape, level, sign)
    "rotate": lambda shape, level, sign: rotation(shape, sign * _whole(level, 30)),
    "shear_x": lambda shape, level, sign: shear_x(sign * level * 0.03),
    "shear_y": lambda shape, level, sign: shear_y(sign * level * 0.03),
    "translate_x": lambda shape, level, sign: translation(sign * _whole(level, shape[1] / 3), 0.0),
    "translate_y": lambda shape, level, sign: translation(0.0, sign * _whole(level, shape[0] / 3)),
}
