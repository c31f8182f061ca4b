"""The augmentation of supervised training: one function of a batch of images and their targets.

Images come as uint8 in [0, 255], channels last, and leave normalised by `(image - mean) / std`. The
result of an example depends on its key and its pixels alone. Only mixup and CutMix also use its
partner.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ssl_jax.augment import colour, geometry, mixing
from ssl_jax.augment.augmix import random_augmix
from ssl_jax.augment.views import Recipe, make_normalise, to_unit
from ssl_jax.errors import UserError

# augment(keys (B,), image (B, S, S, C), target (B, K)) -> (images, target)
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[tuple[jax.Array, ...], jax.Array]]


def make_augment(
    *,
    image_size: int,
    flip: float = 0.5,
    crop_padding: int = 0,
    jitter: float = 0.0,
    cutout: int = 0,
    noise: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    augmix: bool = False,
    augmix_severity: float = 3,
    consistency: float = 12.0,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> Augment:
    """Build the augmentation of a batch for supervised training.

    The operations run in this order: crop, flip, jitter, AugMix, normalisation, cutout, mixup or
    CutMix, noise. An operation at 0 or False is not traced. All images of an example share the
    square, the partner and the share, but not the noise.

    Args:
        image_size: side S of the images in pixels.
        flip: probability of mirroring.
        crop_padding: zeros around the image in pixels, before a random crop of (S, S).
        jitter: probability of the colour jitter, at the strengths of `views.Recipe`. Images of one
            channel have brightness and contrast only.
        cutout: side in pixels of the square that is set to zero.
        noise: standard deviation of the Gaussian noise, in units of the normalised image.
        mixup: alpha of Beta(alpha, alpha). Example i is mixed with example B - 1 - i of the batch
            on its device. The share is drawn from the key of example i.
        cutmix: alpha of Beta(alpha, alpha), with the same partner. With mixup and CutMix, each
            example has one of them with equal probability.
        augmix: whether to apply AugMix.
        augmix_severity: bound of AugMix's levels, in [1, 10].
        consistency: weight of `losses.jensen_shannon` between the clean image and two AugMix
            versions, which the step applies. With AugMix and a weight above 0 all three images come
            out; otherwise one does.
        mean: means for the normalisation, one number or one per channel.
        std: standard deviations for the normalisation, one number or one per channel.

    Returns:
        augment(keys (B,), image (B, S, S, C) uint8, target (B, K)) -> (images, target (B, K)),
        where images is a tuple of (B, S, S, C) float32.

    Raises:
        UserError: names the field with an illegal value.
    """
    check_fields(image_size, {k: v for k, v in locals().items() if k in _LEGAL})
    normalise = make_normalise(mean, std)
    mix = _choose_mix(mixup, cutmix)

    def augment(
        keys: jax.Array, image: jax.Array, target: jax.Array
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        chex.assert_shape(image, (len(keys), image_size, image_size, None))
        chex.assert_shape(target, (len(keys), None))
        split = jax.vmap(lambda key: tuple(jax.random.split(key, 7)))
        crop_key, flip_key, jitter_key, augmix_key, cutout_key, mix_key, noise_key = split(keys)
        image, channels = to_unit(image), image.shape[-1]
        if crop_padding:
            image = jax.vmap(partial(random_padded_crop, padding=crop_padding))(crop_key, image)
        if flip:
            image = jax.vmap(partial(geometry.random_flip, probability=flip))(flip_key, image)
        if jitter:
            operation = partial(
                colour.random_colour_jitter, probability=jitter, **_strengths(channels)
            )
            image = jax.vmap(operation)(jitter_key, image)
        images = (image,)
        if augmix:
            versions = partial(_augmix_images, severity=augmix_severity, clean=consistency > 0)
            images = jax.vmap(versions)(augmix_key, image)
        # Concatenated along the channels, the images of an example share every operation on pixels.
        image = jnp.concatenate([normalise(image) for image in images], axis=-1)
        if cutout:
            image = jax.vmap(partial(mixing.random_cutout, size=cutout))(cutout_key, image)
        if mix:
            image, target = jax.vmap(mix)(mix_key, (image, target), (image[::-1], target[::-1]))
        if noise:
            image = jax.vmap(partial(mixing.gaussian_noise, std=noise))(noise_key, image)
        return tuple(jnp.split(image, len(images), axis=-1)), target

    return augment


def padded_crop(
    image: jax.Array, top: jax.Array | int, left: jax.Array | int, padding: int
) -> jax.Array:
    """Pad the image with zeros and crop a window of its original size.

    Args:
        image: (H, W, C).
        top: first row of the window in the padded image, 0 to 2 padding.
        left: first column of the window in the padded image, 0 to 2 padding.
        padding: zeros on each side, in pixels.

    Returns:
        (H, W, C).
    """
    padded = jnp.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_padded_crop(key: jax.Array, image: jax.Array, padding: int) -> jax.Array:
    """Crop a uniformly drawn window of the padded image: torchvision's `RandomCrop` with a padding.

    Args:
        key: random key.
        image: (H, W, C).
        padding: zeros on each side, in pixels.

    Returns:
        (H, W, C).
    """
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return padded_crop(image, top, left, padding)


def _strengths(channels: int) -> dict[str, float]:
    """Return the strengths of the colour jitter that images of so many channels can have."""
    names = colour.OPERATIONS if channels == 3 else ("brightness", "contrast")
    return {name: getattr(Recipe(), name) for name in names}


def _augmix_images(
    key: jax.Array, image: jax.Array, severity: float, clean: bool
) -> tuple[jax.Array, ...]:
    """Return (image, version, version) if `clean`, else (version,)."""
    keys = jax.random.split(key, 2 if clean else 1)
    versions = jax.vmap(lambda key: random_augmix(key, image, severity))(keys)
    return (image, *versions) if clean else tuple(versions)


def _choose_mix(mixup: float, cutmix: float) -> Callable | None:
    """Return mix(key, example, other) -> example, each (image, target), or None for no mixing."""
    by_mixup, by_cutmix = (
        partial(mixing.random_mixup, alpha=mixup),
        partial(mixing.random_cutmix, alpha=cutmix),
    )

    def either(key: jax.Array, one: mixing.Example, other: mixing.Example) -> mixing.Example:
        coin_key, mixup_key, cutmix_key = jax.random.split(key, 3)
        heads = jax.random.bernoulli(coin_key)
        mixed = by_mixup(mixup_key, one, other), by_cutmix(cutmix_key, one, other)
        return jax.tree.map(lambda a, b: jnp.where(heads, a, b), *mixed)

    return either if mixup and cutmix else by_mixup if mixup else by_cutmix if cutmix else None


def check_fields(image_size: int, fields: dict[str, Any]) -> None:
    """Raise a UserError that names the first field with an illegal value."""
    for field, value in fields.items():
        kind, low, high = _LEGAL[field]
        high = image_size if high is _SIDE else high
        bounded = (
            isinstance(value, kind)
            and isinstance(value, bool) == (kind is bool)
            and low <= value <= high
        )
        if not bounded:
            raise UserError(f"augment.{field}: got {value!r}, takes {_takes(kind, low, high)}")


def _takes(kind: Any, low: float, high: float) -> str:
    """Return the words that describe the legal values."""
    if kind is bool:
        return "True or False"
    number = "a whole number" if kind is int else "a number"
    return f"{number} of {low} or more" if high == math.inf else f"{number} from {low} to {high}"


_NUMBER, _SIDE = int | float, object()
_LEGAL: dict[str, tuple[Any, Any, Any]] = {  # field -> (type, smallest, largest)
    "flip": (_NUMBER, 0, 1),
    "crop_padding": (int, 0, _SIDE),
    "jitter": (_NUMBER, 0, 1),
    "cutout": (int, 0, _SIDE),
    "noise": (_NUMBER, 0, math.inf),
    "mixup": (_NUMBER, 0, math.inf),
    "cutmix": (_NUMBER, 0, math.inf),
    "augmix": (bool, 0, 1),
    "augmix_severity": (_NUMBER, 1, 10),
    "consistency": (_NUMBER, 0, math.inf),
}
