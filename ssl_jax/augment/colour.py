"""Colour operations on one image, with the meaning that Pillow and torchvision give them.

An image is float32 in [0, 1] of shape (H, W, C) and stays so: every operation clips, as 8-bit images do.
Batches are a `vmap` at the call site.

Brightness, contrast and saturation are one operation, a blend with a base picture (Pillow's `ImageEnhance`):
    clip(factor * image + (1 - factor) * base),  base = 0 | mean of grey | grey.
"""

import chex
import jax
import jax.numpy as jnp

BLENDS: tuple[str, ...] = ("brightness", "contrast", "saturation")
OPERATIONS: tuple[str, ...] = (*BLENDS, "hue")


def grayscale(image):
    """0.299 R + 0.587 G + 0.114 B in each channel (ITU-R 601, Pillow's mode L)."""
    return jnp.broadcast_to(_grey(image), image.shape)


def random_grayscale(key, image, probability=0.2):
    """Grey with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), grayscale(image), image)


def adjust_hue(image, delta):
    """Turn the hue of HSV by `delta` of a full circle, in [-1/2, 1/2]; value and saturation stay.

    With M = max(R, G, B), chroma c = M - min(R, G, B) and hue h in sixths of the circle, the channel of
    n = 5, 3, 1 is M - c clip(min(k, 4 - k), 0, 1) at k = (n + h) mod 6: no table of six cases.
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

    def channel(n):
        turns = (n + sixth) / 6 + delta
        k = 6 * (turns - jnp.floor(turns))  # several times faster than a floating-point remainder
        return top - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def colour_jitter(image, turn, amount):
    """Apply the operations named in `amount`, the one with the smallest `turn` first.

    amount: name -> factor of a blend, or delta of the hue; turn: name -> number; names out of OPERATIONS.

    The order is traced, and a `switch` under `vmap` computes every branch at every place: sixteen operations
    for four. Instead the hue, the dear one, is written once, and the blends, cheap and of one form, are run
    through in their order before it and again after it, with a factor other than 1 only on their own side.
    """
    names = [name for name in BLENDS if name in amount]
    turns, factors = jnp.array([turn[name] for name in names]), jnp.array([amount[name] for name in names])
    order = jnp.argsort(turns)
    if "hue" not in amount:
        return _blend_in_order(image, names, order, factors)
    early = turns < turn["hue"]
    image = _blend_in_order(image, names, order, jnp.where(early, factors, 1.0))
    # The barrier: XLA would fuse the hue into each blend that follows, and compute it again in each.
    image = jax.lax.optimization_barrier(adjust_hue(image, amount["hue"]))
    return _blend_in_order(image, names, order, jnp.where(early, 1.0, factors))


def random_colour_jitter(key, image, *, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, probability=0.8):
    """torchvision's `ColorJitter` with a probability: four operations of independent strength, random order.

    Factors are U(max(0, 1 - strength), 1 + strength), the hue's delta U(-hue, hue). Strengths are static; an
    operation of strength 0 is not traced, so the jitter of one operation costs that operation.
    """
    strength = dict(zip(OPERATIONS, (brightness, contrast, saturation, hue), strict=True))
    names = [name for name in OPERATIONS if strength[name] > 0]
    if not names:
        return image
    draw_key, apply_key = jax.random.split(key)
    turns, draws = jax.random.uniform(draw_key, (2, len(names)))
    turn, amount = {}, {}
    for name, when, draw in zip(names, turns, draws, strict=True):
        low, high = (-hue, hue) if name == "hue" else (max(0.0, 1 - strength[name]), 1 + strength[name])
        turn[name], amount[name] = when, low + (high - low) * draw
    return jnp.where(jax.random.bernoulli(apply_key, probability), colour_jitter(image, turn, amount), image)


def _grey(image):
    """(H, W, 1)."""
    if image.shape[-1] == 1:
        return image
    chex.assert_shape(image, (None, None, 3))
    return 0.299 * image[..., 0:1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:3]


def _blend(image, base, factor):
    """clip(factor image + (1 - factor) base); base is a number or (H, W, 1)."""
    return jnp.clip(factor * image + (1 - factor) * base, 0.0, 1.0)


def _blend_in_order(image, names, order, factors):
    """Run through the blends called `names` in the traced `order`, each with its own factor."""
    for place in range(len(names)):
        which, grey = order[place], _grey(image)
        base = jnp.zeros_like(grey)
        if "contrast" in names:
            base = jnp.where(which == names.index("contrast"), grey.mean(), base)
        if "saturation" in names:
            base = jnp.where(which == names.index("saturation"), grey, base)
        image = _blend(image, base, factors[which])
    return image
