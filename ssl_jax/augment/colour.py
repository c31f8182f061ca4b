"""Colour operations on one image, equal to those of Pillow and torchvision.

An image is float32 in [0, 1] of shape (H, W, C) and stays so: every operation clips, as operations
on 8-bit images do. Batches are a `vmap` at the call site.

Brightness, contrast and saturation are one operation, a blend with a base image (Pillow's
`ImageEnhance`):
    clip(factor * image + (1 - factor) * base),  base = 0 | mean of grey | grey.
"""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp

from ssl_jax.types import Scalar

BLENDS: tuple[str, ...] = ("brightness", "contrast", "saturation")
OPERATIONS: tuple[str, ...] = (*BLENDS, "hue")


def grayscale(image: jax.Array) -> jax.Array:
    """Return 0.299 R + 0.587 G + 0.114 B in each channel (ITU-R 601, Pillow's mode L)."""
    return jnp.broadcast_to(_grey(image), image.shape)


def random_grayscale(key: jax.Array, image: jax.Array, probability: float = 0.2) -> jax.Array:
    """Convert the image to grey with the given probability.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1]; C is 1 or 3.
        probability: in [0, 1].

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    return jnp.where(jax.random.bernoulli(key, probability), grayscale(image), image)


def adjust_hue(image: jax.Array, delta: Scalar) -> jax.Array:
    """Shift the hue of HSV by `delta` of a full circle, in [-1/2, 1/2]; value and saturation stay.

    With M = max(R, G, B), chroma c = M - min(R, G, B) and hue h in sixths of the circle, the
    channel of n = 5, 3, 1 is M - c clip(min(k, 4 - k), 0, 1) at k = (n + h) mod 6. This needs no
    table of six cases.
    """
    chex.assert_shape(image, (None, None, 3))
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    top = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = top - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(
        top == red,
        (green - blue) / safe,
        jnp.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )

    def channel(n: int) -> jax.Array:
        turns = (n + sixth) / 6 + delta
        # Several times faster than a floating-point remainder.
        k = 6 * (turns - jnp.floor(turns))
        return top - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def colour_jitter(
    image: jax.Array, rank: Mapping[str, jax.Array], amount: Mapping[str, jax.Array]
) -> jax.Array:
    """Apply the operations named in `amount`, in ascending order of `rank`.

    Args:
        image: (H, W, C) float32 in [0, 1].
        rank: name of an operation -> (), a number that decides its place in the order. It may be
            traced.
        amount: name of an operation -> (), the factor of a blend or the delta of the hue. Names are
            out of OPERATIONS.

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    # The order is traced, and a `switch` under `vmap` computes every branch at every place: sixteen
    # operations instead of four. So the hue, the expensive operation, is written once. The blends
    # are cheap and have one form. They run in their order twice, before the hue and after it, with
    # a factor other than 1 only on their own side of it.
    names = [name for name in BLENDS if name in amount]
    ranks, factors = (
        jnp.array([rank[name] for name in names]),
        jnp.array([amount[name] for name in names]),
    )
    order = jnp.argsort(ranks)
    if "hue" not in amount:
        return _blend_in_order(image, names, order, factors)
    early = ranks < rank["hue"]
    image = _blend_in_order(image, names, order, jnp.where(early, factors, 1.0))
    # Without the barrier XLA fuses the hue into each blend that follows and computes it again in
    # each.
    image = jax.lax.optimization_barrier(adjust_hue(image, amount["hue"]))
    return _blend_in_order(image, names, order, jnp.where(early, 1.0, factors))


def random_colour_jitter(
    key: jax.Array,
    image: jax.Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    probability: float = 0.8,
) -> jax.Array:
    """Apply torchvision's `ColorJitter` with a probability: independent strengths, random order.

    Factors are U(max(0, 1 - strength), 1 + strength). The hue's delta is U(-hue, hue). Strengths
    are static, and an operation of strength 0 is not traced.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1]. Saturation and hue take C = 3.
        brightness: strength, 0 or more.
        contrast: strength, 0 or more.
        saturation: strength, 0 or more.
        hue: largest shift as a share of the full circle, in [0, 0.5].
        probability: probability that any of this is done.

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    strength = dict(zip(OPERATIONS, (brightness, contrast, saturation, hue), strict=True))
    names = [name for name in OPERATIONS if strength[name] > 0]
    if not names:
        return image
    draw_key, apply_key = jax.random.split(key)
    ranks, draws = jax.random.uniform(draw_key, (2, len(names)))
    rank, amount = {}, {}
    for name, place, draw in zip(names, ranks, draws, strict=True):
        low, high = (
            (-hue, hue) if name == "hue" else (max(0.0, 1 - strength[name]), 1 + strength[name])
        )
        rank[name], amount[name] = place, low + (high - low) * draw
    return jnp.where(
        jax.random.bernoulli(apply_key, probability), colour_jitter(image, rank, amount), image
    )


def solarize(image: jax.Array, threshold: Scalar = 128) -> jax.Array:
    """Invert the values from threshold / 255 on, as Pillow's `ImageOps.solarize` does.

    At 128 that is x -> x for x < 1/2, else 1 - x: BYOL, arXiv 2006.07733, appendix B.

    Args:
        image: (H, W, C) float32 in [0, 1].
        threshold: in [0, 256], of the values as 8 bits.

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    return jnp.where(eight_bits(image) < threshold, image, 1 - image)


def random_solarize(key: jax.Array, image: jax.Array, probability: float = 0.2) -> jax.Array:
    """Solarise the image at 1/2 with the given probability.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1].
        probability: in [0, 1]; 0.2 on one side of BYOL, arXiv 2006.07733, table 6.

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    return jnp.where(jax.random.bernoulli(key, probability), solarize(image), image)


def eight_bits(image: jax.Array) -> jax.Array:
    """Return the values rounded to 0..255, int32."""
    return jnp.round(255 * image).astype(jnp.int32)


def _grey(image: jax.Array) -> jax.Array:
    """Return the luma (H, W, 1)."""
    if image.shape[-1] == 1:
        return image
    chex.assert_shape(image, (None, None, 3))
    return 0.299 * image[..., 0:1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:3]


def _blend(image: jax.Array, base: Scalar, factor: Scalar) -> jax.Array:
    """Return clip(factor image + (1 - factor) base); base is a number or (H, W, 1)."""
    return jnp.clip(factor * image + (1 - factor) * base, 0.0, 1.0)


def _blend_in_order(
    image: jax.Array, names: list[str], order: jax.Array, factors: jax.Array
) -> jax.Array:
    """Apply the blends `names` in the traced `order` (K,), each with its own factor (K,)."""
    for place in range(len(names)):
        which, grey = order[place], _grey(image)
        base = jnp.zeros_like(grey)
        if "contrast" in names:
            base = jnp.where(which == names.index("contrast"), grey.mean(), base)
        if "saturation" in names:
            base = jnp.where(which == names.index("saturation"), grey, base)
        image = _blend(image, base, factors[which])
    return image
