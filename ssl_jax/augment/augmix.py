"""AugMix: a picture mixed with chains of simple operations on itself (Hendrycks et al. 2020, arXiv 1912.02781).

An image is float32 in [0, 1] of shape (H, W, C) and stays so. The nine operations mean what they mean in Pillow, up to
its rounding to 8 bits after each; strengths are those of the authors' code. Colour, contrast, brightness and sharpness
are left out, as in the paper: they are among the corruptions that it tests on.

Four operations map values, the other five are one affine resampling with five kinds of coefficients. A `switch` under
`vmap` computes every branch, so that a step of a chain costs one resampling, not five.
"""

import jax
import jax.numpy as jnp

WIDTH = 3  # chains an image
DEPTH = 3  # operations a chain, at most; 1 to DEPTH with equal probability


def random_augmix(key, image, severity: float = 3):
    """(1 - m) image + m sum_i w_i chain_i(image), m ~ U(0, 1), w ~ Dirichlet(1, 1, 1), three random chains.

    Algorithm 1 of the paper with its alpha = 1, where Beta(1, 1) is uniform and exponentials over their sum are
    Dirichlet(1, ..., 1). severity: in [1, 10], bounds the strength of the operations.
    """
    chain_key, weight_key, share_key = jax.random.split(key, 3)
    chain_keys = jax.random.split(chain_key, WIDTH)
    chains = jax.vmap(lambda key: random_chain(key, image, severity))(chain_keys)
    weights = jax.random.exponential(weight_key, (WIDTH,))
    return augmix(image, chains, weights / weights.sum(), jax.random.uniform(share_key))


def augmix(image, chains, weights, share):
    """(1 - share) image + share sum_i weights_i chains_i; chains (WIDTH, H, W, C)."""
    mixed = jnp.sum(weights[:, None, None, None] * chains, axis=0)
    return (1 - share) * image + share * mixed


def random_chain(key, image, severity: float):
    """1 to DEPTH operations in a row, each any of the nine, of level U(0.1, severity), either way round."""
    depth, which, level, sign = jnp.split(jax.random.uniform(key, (1 + 3 * DEPTH,)), (1, 1 + DEPTH, 1 + 2 * DEPTH))
    lasts = jnp.arange(DEPTH) < 1 + jnp.floor(depth * DEPTH)
    which = jnp.floor(which * (len(VALUES) + len(MOVES))).astype(jnp.int32)
    level, sign = 0.1 + level * (severity - 0.1), jnp.where(sign < 0.5, -1.0, 1.0)

    def step(image, draw):
        lasts, which, level, sign = draw
        return jnp.where(lasts, operate(image, which, level, sign), image), None

    return jax.lax.scan(step, image, (lasts, which, level, sign))[0]


def operate(image, which, level, sign):
    """Operation number `which` of (*VALUES, *MOVES) at a level in [0, 10); sign: -1 or 1, for the moves."""

    def move(image, level):
        coefficients = jnp.stack([kind(image.shape, level, sign) for kind in MOVES.values()])
        return affine(image, coefficients[jnp.maximum(which - len(VALUES), 0)])

    return jax.lax.switch(jnp.minimum(which, len(VALUES)), [*VALUES.values(), move], image, level)


# --- Values: each channel by itself ---------------------------------------------------------------------------


def autocontrast(image):
    """Stretch each channel to [0, 1]; an even one stays."""
    low, high = image.min(axis=(0, 1), keepdims=True), image.max(axis=(0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1.0), image)


def equalize(image):
    """Each channel through its cumulative histogram of 256 values: Pillow's integers, `ImageOps.equalize`.

    Value v becomes (s // 2 + number of pixels below v) // s of 255, at a step s = (H W - number of the brightest
    pixels) // 255. Where s = 0 (an even channel, or fewer than 256 pixels) the channel stays.
    """
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel):
    value = _eight_bits(channel)
    count = jnp.zeros(256, jnp.int32).at[value].add(1)
    step = (value.size - count[value.max()]) // 255
    table = (step // 2 + jnp.cumsum(count) - count) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255)[value] / 255, channel)


def posterize(image, bits):
    """Keep the first `bits` of the 8 bits of each value."""
    value = _eight_bits(image)
    return (value - value % jnp.left_shift(1, 8 - bits)) / 255


def solarize(image, threshold):
    """Invert the values from threshold / 255 on; threshold in [0, 256]."""
    return jnp.where(_eight_bits(image) < threshold, image, 1 - image)


def _eight_bits(image):
    return jnp.round(255 * image).astype(jnp.int32)


# --- Moves: output pixel (x, y) is looked up at (a x + b y + c, d x + e y + f), as in Pillow's AFFINE -----------


def affine(image, coefficients):
    """Resample by `coefficients` (6,) = a, b, c, d, e, f, bilinear; what lies outside is 0.

    Pillow's `Image.transform(size, AFFINE, coefficients, BILINEAR)`: pixel i covers [i, i + 1), a place off the image
    is black, and in the outer half of an edge pixel its own value is taken.
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = coefficients
    y, x = jnp.mgrid[:height, :width] + 0.5
    x, y = a * x + b * y + c, d * x + e * y + f
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_share, low_share = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]

    def at(row, column):
        rows, columns = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return image[rows.astype(jnp.int32), columns.astype(jnp.int32)]

    upper = (1 - right_share) * at(top, left) + right_share * at(top, left + 1)
    lower = (1 - right_share) * at(top + 1, left) + right_share * at(top + 1, left + 1)
    inside = (0 <= x) & (x < width) & (0 <= y) & (y < height)
    return jnp.where(inside[..., None], (1 - low_share) * upper + low_share * lower, 0.0)


def rotation(shape, degrees):
    """Counter-clockwise about the centre."""
    turn, x, y = jnp.deg2rad(degrees), shape[1] / 2, shape[0] / 2
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    return jnp.array([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y])


def shear_x(slope):
    return jnp.array([1.0, slope, 0.0, 0.0, 1.0, 0.0])


def shear_y(slope):
    return jnp.array([1.0, 0.0, 0.0, slope, 1.0, 0.0])


def translation(x, y):
    """Look x pixels to the right and y pixels down: the picture goes left and up."""
    return jnp.array([1.0, 0.0, x, 0.0, 1.0, y])


# --- Strengths of the authors' code: the largest, times level / 10, whole where it is a count --------------------


def _whole(level, largest):
    return jnp.floor(level * largest / 10)


VALUES = {  # name -> operation(image, level)
    "autocontrast": lambda image, level: autocontrast(image),
    "equalize": lambda image, level: equalize(image),
    "posterize": lambda image, level: posterize(image, 4 - _whole(level, 4).astype(jnp.int32)),
    "solarize": lambda image, level: solarize(image, 256 - _whole(level, 256)),
}
MOVES = {  # name -> coefficients(shape, level, sign)
    "rotate": lambda shape, level, sign: rotation(shape, sign * _whole(level, 30)),
    "shear_x": lambda shape, level, sign: shear_x(sign * level * 0.03),
    "shear_y": lambda shape, level, sign: shear_y(sign * level * 0.03),
    "translate_x": lambda shape, level, sign: translation(sign * _whole(level, shape[1] / 3), 0.0),
    "translate_y": lambda shape, level, sign: translation(0.0, sign * _whole(level, shape[0] / 3)),
}
