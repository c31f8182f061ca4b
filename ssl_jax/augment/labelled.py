"""The augmentation of supervised training: one function of a batch of images and their targets.

Images come as uint8 in [0, 255], channels last, and leave normalised by `(image - mean) / std`. Up to the mixing,
what is done to an example follows from its key and its pixels alone; mixup and CutMix also look at its partner.
"""

import math
from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp

from ssl_jax.augment import colour, geometry, mixing
from ssl_jax.augment.augmix import random_augmix
from ssl_jax.augment.views import Recipe, make_normalise, to_unit
from ssl_jax.errors import UserError


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
    mean: tuple = (0.0,),
    std: tuple = (1.0,),
) -> Callable:
    """augment(keys (B,), image (B, S, S, C) uint8, target (B, K)) -> (tuple of images (B, S, S, C) float32, target).

    What is done, in this order; 0 or False: not traced at all.
    crop_padding: zeros put around the image, out of which (S, S) is cropped anywhere.
    flip: probability of mirroring.
    jitter: probability of the colour jitter of the two views, at the strengths of `views.Recipe`; images of one
        channel have brightness and contrast only.
    augmix: AugMix at `augmix_severity` (1 to 10). Three images come out, the clean one and two AugMix versions of it,
        for the step to weigh their `losses.jensen_shannon` with `consistency`; where that is 0, one version.
    (normalisation by mean and std: one number, or one a channel)
    cutout: side in pixels of the square set to zero.
    mixup, cutmix: alpha of Beta(alpha, alpha). Example i is mixed with example B - 1 - i, its mirror in the batch, or,
        where the batch is spread over devices, in its own device's share of it; the share is drawn from its own key.
        With both, each example has one of them, at equal odds.
    noise: standard deviation of the Gaussian noise, in units of the normalised image.
    The square, partner and share are the same for all images of an example, the noise is not.
    UserError that names the field with an illegal value.
    """
    check_fields(image_size, {k: v for k, v in locals().items() if k in _LEGAL})
    normalise = make_normalise(mean, std)
    mix = _choose_mix(mixup, cutmix)

    def augment(keys, image, target):
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
            operation = partial(colour.random_colour_jitter, probability=jitter, **_strengths(channels))
            image = jax.vmap(operation)(jitter_key, image)
        images = (image,)
        if augmix:
            versions = partial(_augmix_images, severity=augmix_severity, clean=consistency > 0)
            images = jax.vmap(versions)(augmix_key, image)
        # Side by side in the channels, the images of an example share all that goes by pixels.
        image = jnp.concatenate([normalise(image) for image in images], axis=-1)
        if cutout:
            image = jax.vmap(partial(mixing.random_cutout, size=cutout))(cutout_key, image)
        if mix:
            image, target = jax.vmap(mix)(mix_key, (image, target), (image[::-1], target[::-1]))
        if noise:
            image = jax.vmap(partial(mixing.gaussian_noise, std=noise))(noise_key, image)
        return tuple(jnp.split(image, len(images), axis=-1)), target

    return augment


def padded_crop(image, top, left, padding: int):
    """The window of the image's own size at (top, left), each 0 to 2 padding, after putting zeros around it."""
    padded = jnp.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_padded_crop(key, image, padding: int):
    """Any window with equal probability: torchvision's `RandomCrop` with a padding."""
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return padded_crop(image, top, left, padding)


def _strengths(channels: int) -> dict:
    names = colour.OPERATIONS if channels == 3 else ("brightness", "contrast")
    return {name: getattr(Recipe(), name) for name in names}


def _augmix_images(key, image, severity: float, clean: bool) -> tuple:
    """(image, version, version), or (version,) where the clean one is not wanted."""
    keys = jax.random.split(key, 2 if clean else 1)
    versions = jax.vmap(lambda key: random_augmix(key, image, severity))(keys)
    return (image, *versions) if clean else tuple(versions)


def _choose_mix(mixup: float, cutmix: float) -> Callable | None:
    """mix(key, (image, target), (other image, its target)) -> (image, target), of one example; None: no mixing."""
    by_mixup, by_cutmix = partial(mixing.random_mixup, alpha=mixup), partial(mixing.random_cutmix, alpha=cutmix)

    def either(key, one, other):
        coin_key, mixup_key, cutmix_key = jax.random.split(key, 3)
        heads = jax.random.bernoulli(coin_key)
        mixed = by_mixup(mixup_key, one, other), by_cutmix(cutmix_key, one, other)
        return jax.tree.map(lambda a, b: jnp.where(heads, a, b), *mixed)

    return either if mixup and cutmix else by_mixup if mixup else by_cutmix if cutmix else None


def check_fields(image_size: int, fields: dict) -> None:
    """UserError that names the first field with an illegal value."""
    for field, value in fields.items():
        kind, low, high = _LEGAL[field]
        high = image_size if high is _SIDE else high
        bounded = isinstance(value, kind) and isinstance(value, bool) == (kind is bool) and low <= value <= high
        if not bounded:
            raise UserError(f"augment.{field}: got {value!r}, takes {_takes(kind, low, high)}")


def _takes(kind, low, high) -> str:
    if kind is bool:
        return "True or False"
    number = "a whole number" if kind is int else "a number"
    return f"{number} of {low} or more" if high == math.inf else f"{number} from {low} to {high}"


_NUMBER, _SIDE = int | float, object()
_LEGAL = {  # field -> type, smallest, largest
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
