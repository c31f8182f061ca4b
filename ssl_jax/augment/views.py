"""Two views of each image of a batch, by a named recipe whose every number can be overridden.

A recipe may treat the two sides differently: `blur_second` and `solarize_second` are of the second
view. `evaluation_view` is what validation and probes see in place of the views.

Value contract: images come as uint8 in [0, 255] or float in [0, 1], channels last. Inside they are
float32 in [0, 1]. Views leave normalised by `(image - mean) / std`. The views of an example depend
on its key and its pixels alone, not on its batch, its place there or its device.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.augment import colour, geometry
from ssl_jax.errors import UserError, nearest

# views(keys (B,), image (B, H, W, C)) -> two arrays (B, size, size, C)
Views = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Recipe(NamedTuple):
    """The operations on an image, in the order of the fields.

    An operation of probability or strength 0 is not traced.
    """

    size: int = 0  # side of a view in pixels, and of the central crop for probes; 0: as stored
    crop_scale: tuple[float, float] = (0.08, 1.0)  # range of the crop's area, share of the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height
    flip: float = 0.5  # probability of mirroring
    brightness: float = 0.4  # strength x: factors are U(max(0, 1 - x), 1 + x)
    contrast: float = 0.4  # strength, as for the brightness
    saturation: float = 0.4  # strength, as for the brightness
    hue: float = 0.1  # strength x: shifts are U(-x, x) of a full circle
    jitter: float = 0.8  # probability of the four operations above, in random order
    gray: float = 0.2  # probability of converting to grey
    blur: float = 0.0  # probability of the Gaussian blur
    blur_second: float | None = None  # the same of the second view; None: as the first
    blur_kernel: int = 9  # width of the blur's kernel in pixels; 0: a tenth of the view's side
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # range of its standard deviation, in pixels
    solarize: float = 0.0  # probability of inverting the values from 1/2 on
    solarize_second: float | None = None  # the same of the second view; None: as the first
    # for the normalisation: one number, or one per channel; None: those of the set, measured
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


RECIPES = {
    # BYOL on CIFAR in the DirectPred paper's code; the statistics are those of CIFAR-10.
    "cifar": Recipe(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    # The same code on STL-10: stronger colours, every view blurred (a tenth of 96 pixels), no
    # normalisation.
    "stl10": Recipe(
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        blur=1.0,
        mean=(0.0,),
        std=(1.0,),
    ),
    # Photographs as in BYOL: Grill et al. 2020, arXiv 2006.07733, appendix B and table 6. The two
    # sides differ in blur and solarisation. Its kernel has 23 pixels of 224.
    "photo": Recipe(
        saturation=0.2,
        blur=1.0,
        blur_second=0.1,
        blur_kernel=0,
        solarize=0.0,
        solarize_second=0.2,
    ),
    # 8x8 digits, one channel. A mirrored digit is another sign, and a small crop shows no digit.
    # The statistics are those of the digits.
    "digits": Recipe(
        crop_scale=(0.5, 1.0),
        flip=0.0,
        saturation=0.0,
        hue=0.0,
        gray=0.0,
        mean=(0.3053,),
        std=(0.3761,),
    ),
}


def make_recipe(recipe: str, **overrides: Any) -> Recipe:
    """Return the recipe of that name with some fields replaced; None keeps the recipe's own value.

    Raises:
        UserError: names the recipe or field that does not exist, or the field with an illegal
            value.
    """
    if recipe not in RECIPES:
        raise UserError(f"views.recipe: got {recipe!r}, {nearest(str(recipe), RECIPES)}")
    for field in overrides:
        if field not in Recipe._fields:
            raise UserError(f"views.{field}: no such field, {nearest(field, Recipe._fields)}")
    made = RECIPES[recipe]._replace(**{k: v for k, v in overrides.items() if v is not None})
    check_recipe(made)
    return made


def make_views(recipe: Recipe, side: int) -> Views:
    """Build the function that draws two independent views of each image.

    Args:
        recipe: the operations, with mean and std.
        side: side of a view in pixels, where the recipe says none: that of the images.

    Returns:
        views(keys (B,), image (B, H, W, C) uint8) -> two arrays (B, size, size, C) float32,
        normalised.

    Raises:
        UserError: for an illegal value. Where the value depends on the number of channels, the
            returned function raises it when it is traced.
    """
    check_recipe(recipe)
    size = recipe.size or side
    recipe = recipe._replace(blur_kernel=recipe.blur_kernel or blur_kernel(size))
    first, second = recipes = sides(recipe)
    if max(first.blur, second.blur) > 0 and recipe.blur_kernel // 2 >= size:
        takes = f"an odd whole number below {2 * size} for views of {size} pixels"
        raise UserError(f"views.blur_kernel: got {recipe.blur_kernel}, takes {takes}")

    def two_views(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        if first == second:
            one_view = partial(augment, recipe=first, size=size)
            return jax.vmap(one_view, in_axes=(0, None))(keys, image)
        return jnp.stack([augment(k, image, r, size) for k, r in zip(keys, recipes, strict=True)])

    def views(keys: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        chex.assert_rank(image, 4)
        chex.assert_shape(keys, image.shape[:1])
        check_channels(recipe, image.shape[-1])
        first, second = jax.vmap(two_views, out_axes=1)(keys, to_unit(image))
        return first, second

    return views


def sides(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """Return the recipe of the first view and that of the second, each by its first fields."""
    alike = recipe._replace(blur_second=None, solarize_second=None)
    own = {"blur": recipe.blur_second, "solarize": recipe.solarize_second}
    return alike, alike._replace(**{k: v for k, v in own.items() if v is not None})


def blur_kernel(size: int) -> int:
    """Return the width of the blur's kernel for views of `size` pixels: 2 floor(size / 20) + 1.

    A tenth of the side, made odd, as BYOL's published code has it (byol/utils/augmentations.py): 23
    of 224.
    """
    return 2 * (size // 20) + 1


def augment(key: jax.Array, image: jax.Array, recipe: Recipe, size: int) -> jax.Array:
    """Draw one view of one image by the recipe of one side.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1].
        recipe: the operations, see `sides`.
        size: side of the view in pixels.

    Returns:
        (size, size, C) float32, normalised.
    """
    crop_key, flip_key, jitter_key, gray_key, blur_key = jax.random.split(key, 5)
    if recipe.solarize > 0:  # recipes without it draw what they drew before there was one
        blur_key, solarize_key = jax.random.split(blur_key)
    image = geometry.random_resized_crop(
        crop_key, image, size, recipe.crop_scale, recipe.crop_ratio
    )
    if recipe.flip > 0:
        image = geometry.random_flip(flip_key, image, recipe.flip)
    if recipe.jitter > 0:
        strengths = {name: getattr(recipe, name) for name in colour.OPERATIONS}
        image = colour.random_colour_jitter(
            jitter_key, image, probability=recipe.jitter, **strengths
        )
    if recipe.gray > 0:
        image = colour.random_grayscale(gray_key, image, recipe.gray)
    if recipe.blur > 0:
        image = geometry.random_gaussian_blur(
            blur_key, image, recipe.blur_kernel, recipe.blur_sigma, recipe.blur
        )
    if recipe.solarize > 0:
        image = colour.random_solarize(solarize_key, image, recipe.solarize)
    return normalise(image, *statistics(recipe))


def statistics(recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of a recipe; UserError where one is still to be measured."""
    if recipe.mean is None or recipe.std is None:
        raise UserError(
            f"views.mean, views.std: got {recipe.mean}, {recipe.std}, take numbers: "
            "the recipe has none of its own, and none were measured"
        )
    return recipe.mean, recipe.std


def measure(
    image: np.ndarray, most: int = 10_000, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in units of [0, 1].

    They are of at most `most` images, drawn by the seed. The sums are in whole numbers, so that no
    order of summation and no machine changes a digit; six digits are kept. A constant channel has
    the deviation 1: it is shifted to 0 and not scaled.

    Args:
        image: (N, H, W, C) uint8, N at least 1.
        most: largest number of images that are read.
        seed: of the draw.

    Returns:
        The means (C,) and the deviations (C,).
    """
    count, height, width, channels = image.shape
    chosen = range(count)
    if count > most:
        chosen = np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
    total, squares = np.zeros((2, channels), np.uint64)
    rows = np.asarray(chosen)
    # some at a time: images that stay encoded are then decoded in parallel
    parts = (image[rows[first : first + 64]] for first in range(0, len(rows), 64))
    for one in (one for part in parts for one in part):
        values = one.reshape(height, -1).astype(np.uint32)
        # down the columns first: vectorised, and 32 bits hold 66 000 squares of bytes
        total += values.sum(axis=0, dtype=np.uint32).reshape(width, channels).sum(axis=0)
        values *= values
        squares += values.sum(axis=0, dtype=np.uint32).reshape(width, channels).sum(axis=0)
    scale = 255 * len(chosen) * height * width
    # n sum(x^2) - sum(x)^2 in whole numbers: no digit is lost where the deviation is small
    spread = [
        len(chosen) * height * width * s2 - s**2
        for s, s2 in zip(total.tolist(), squares.tolist(), strict=True)
    ]
    return (
        _six_digits([s / scale for s in total.tolist()]),
        _six_digits([math.sqrt(v) / scale if v else 1.0 for v in spread]),
    )


def _six_digits(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def to_unit(image: jax.Array | np.ndarray) -> jax.Array:
    """Convert uint8 in [0, 255] to float32 in [0, 1]; return floats as they are."""
    unit = image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image
    return cast(jax.Array, unit)  # a NumPy image may stay one outside of a trace


def normalise(image: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Return (image - mean) / std of an image or a batch.

    Args:
        image: (..., C), uint8 in [0, 255] or float in [0, 1].
        mean: one number, or one per channel.
        std: one number, or one per channel.

    Returns:
        (..., C) float32.
    """
    return (to_unit(image) - _channels_last(mean, image)) / _channels_last(std, image)


def to_display(view: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Invert `normalise` and clip to [0, 1].

    Args:
        view: (..., C) float32, normalised.
        mean: one number, or one per channel.
        std: one number, or one per channel.

    Returns:
        (..., C) float32 in [0, 1].
    """
    return jnp.clip(view * _channels_last(std, view) + _channels_last(mean, view), 0.0, 1.0)


def make_normalise(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[jax.Array], jax.Array]:
    """Return normalise(image (B, H, W, C) uint8) -> float32: what probes use in place of views."""
    check_recipe(Recipe(mean=mean, std=std))
    return partial(normalise, mean=mean, std=std)


def evaluation_view(recipe: Recipe) -> Callable[[jax.Array], jax.Array]:
    """Return view(image (B, H, W, C) uint8) -> float32: what validation and probes see.

    It is the central crop of `recipe.size` pixels, normalised; without a size the whole image, as
    stored. So training and probing see objects at the same scale.
    """
    size, normalised = recipe.size, make_normalise(*statistics(recipe))

    def view(image: jax.Array) -> jax.Array:
        return normalised(geometry.central_crop(image, size) if size else image)

    return view


def _channels_last(values: Sequence[float], image: jax.Array) -> jax.Array:
    """Return the values with as many dimensions as the image, the last one for the channels."""
    _check_one_or_each(values, image.shape[-1])
    return jnp.asarray(values, jnp.float32).reshape((1,) * (image.ndim - 1) + (-1,))


def check_channels(recipe: Recipe, channels: int) -> None:
    """Raise a UserError if the recipe does not fit images of so many channels.

    Saturation, hue and grey need three channels. Mean and std have one number or one per channel,
    where they are known.
    """
    jitters = ("saturation", "hue") if recipe.jitter > 0 else ()
    for field in (*jitters, "gray"):
        value = getattr(recipe, field)
        if value > 0 and channels != 3:
            raise UserError(
                f"views.{field}: got {value}, takes 0 for images of {channels} channel(s): "
                "it needs 3"
            )
    for values in (recipe.mean, recipe.std):
        if values is not None:
            _check_one_or_each(values, channels)


def _check_one_or_each(values: Sequence[float], channels: int) -> None:
    if len(values) not in (1, channels):
        raise UserError(
            f"views.mean, views.std: got {values}, take one number or {channels}, one a channel"
        )


def check_recipe(recipe: Recipe) -> None:
    """Raise a UserError that names the first field with an illegal value."""
    for field, (takes, is_legal) in _LEGAL.items():
        value = getattr(recipe, field)
        if not is_legal(value):
            raise UserError(f"views.{field}: got {value!r}, takes {takes}")


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _numbers(value: Any, low: float = -math.inf) -> bool:
    return (
        isinstance(value, tuple | list) and len(value) > 0 and all(_number(v, low) for v in value)
    )


def _span(value: Any, high: float = math.inf) -> bool:
    return _numbers(value) and len(value) == 2 and 0 < value[0] <= value[1] <= high


def _or_none(legal: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or legal(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_PROBABILITY = ("a probability, a number in [0, 1]", partial(_number, low=0, high=1))
_STRENGTH = ("a number of 0 or more", partial(_number, low=0))
_LEGAL: dict[str, tuple[str, Callable[[Any], bool]]] = {  # field -> (what it takes, test)
    "size": ("a whole number of pixels, 0 or more", lambda v: _whole(v) and v >= 0),
    "crop_scale": ("two numbers, 0 < low <= high <= 1", partial(_span, high=1)),
    "crop_ratio": ("two numbers, 0 < low <= high", _span),
    "flip": _PROBABILITY,
    "brightness": _STRENGTH,
    "contrast": _STRENGTH,
    "saturation": _STRENGTH,
    "hue": ("a number in [0, 0.5]", partial(_number, low=0, high=0.5)),
    "jitter": _PROBABILITY,
    "gray": _PROBABILITY,
    "blur": _PROBABILITY,
    "blur_second": (_PROBABILITY[0], _or_none(_PROBABILITY[1])),
    "blur_kernel": (
        "an odd whole number, or 0 for a tenth of the view's side",
        lambda v: _whole(v) and v >= 0 and (v == 0 or v % 2 == 1),
    ),
    "blur_sigma": ("two numbers, 0 < low <= high", _span),
    "solarize": _PROBABILITY,
    "solarize_second": (_PROBABILITY[0], _or_none(_PROBABILITY[1])),
    "mean": ("a list of numbers, one, or one a channel", _or_none(_numbers)),
    "std": (
        "a list of numbers above 0, one, or one a channel",
        _or_none(lambda v: _numbers(v) and min(v) > 0),
    ),
}
