"""Crop, resize, flip and blur of one image, equal to the operations of Pillow and torchvision.

An image is float32 in [0, 1] of shape (H, W, C). Batches are a `vmap` at the call site. An
operation that mixes pixels along an axis is a matrix product with a (size, H) or (size, W) matrix
of weights. Box and strength may then be traced, which shapes may not. Matrix products stay fast
where per-example convolutions are slow.
"""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.types import Scalar

Range = tuple[float, float]
Image = TypeVar("Image", jax.Array, np.ndarray)


def resized_crop(
    image: jax.Array, top: Scalar, left: Scalar, height: Scalar, width: Scalar, size: int
) -> jax.Array:
    """Crop the box, then resize it to (size, size) as Pillow's bilinear `Image.resize` does.

    No pixel outside the box is used. When shrinking, the triangle filter widens with the ratio
    (Pillow's antialiasing).

    Args:
        image: (H, W, C) float32 in [0, 1].
        top: first row of the box. This and the other numbers of the box may be traced; they are
            whole, with 0 <= top and top + height <= H.
        left: first column of the box, with 0 <= left and left + width <= W.
        height: rows of the box.
        width: columns of the box.
        size: side of the output in pixels, static.

    Returns:
        (size, size, C) float32 in [0, 1].
    """
    chex.assert_rank(image, 3)
    rows = _resize_weights(top, height, image.shape[0], size)
    columns = _resize_weights(left, width, image.shape[1], size)
    return _along_both_axes(rows, columns, image)


def random_resized_crop(
    key: jax.Array,
    image: jax.Array,
    size: int,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
) -> jax.Array:
    """Crop a box drawn by `random_box` and resize it: torchvision's `RandomResizedCrop`.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1].
        size: side of the output in pixels, static.
        scale: range of the box's area, as a share of the image's.
        ratio: range of the box's width / height.

    Returns:
        (size, size, C) float32 in [0, 1].
    """
    height, width, _ = image.shape
    return resized_crop(image, *random_box(key, height, width, scale, ratio), size=size)


def random_box(
    key: jax.Array, height: int, width: int, scale: Range, ratio: Range
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draw a box as torchvision's `RandomResizedCrop.get_params` does.

    The area is U(scale) of the image's, width / height is log-uniform in `ratio`, and the sides are
    rounded. The first of ten draws that fits is placed uniformly. When none fits, the result is the
    largest central box of an allowed ratio.

    Args:
        key: random key.
        height: rows of the image.
        width: columns of the image.
        scale: range of the box's area, as a share of the image's.
        ratio: range of the box's width / height.

    Returns:
        (top, left, height, width), each () float32 and whole.
    """
    areas, ratios, place = jnp.split(jax.random.uniform(key, (22,)), (10, 20))
    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** ratios
    sides = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect])))
    whole = jnp.array([height, width])
    fits = jnp.all((0 < sides) & (sides <= whole[:, None]), axis=0)
    sides = sides[:, jnp.argmax(fits)]
    corner = jnp.floor(place * (whole - sides + 1))
    central = jnp.array(_central_box(height, width, ratio))
    return tuple(jnp.where(fits.any(), jnp.concatenate([corner, sides]), central))


def _central_box(height: int, width: int, ratio: Range) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the largest central box of an allowed ratio."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def central_crop(image: Image, size: int) -> Image:
    """Return the central (size, size) pixels of an image or a batch (..., H, W, C)."""
    height, width = image.shape[-3:-1]
    top, left = (height - size) // 2, (width - size) // 2
    return image[..., top : top + size, left : left + size, :]


def flip_left_right(image: jax.Array) -> jax.Array:
    """Mirror the columns."""
    return image[:, ::-1]


def random_flip(key: jax.Array, image: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirror the columns with the given probability.

    Args:
        key: random key.
        image: (H, W, C).
        probability: in [0, 1].

    Returns:
        (H, W, C).
    """
    return jnp.where(jax.random.bernoulli(key, probability), flip_left_right(image), image)


def gaussian_blur(image: jax.Array, sigma: Scalar, kernel_size: int) -> jax.Array:
    """Convolve both axes with exp(-d^2 / (2 sigma^2)), |d| <= kernel_size // 2, normalised.

    torchvision's `gaussian_blur`: edges are reflected, and the edge pixel is not repeated.

    Args:
        image: (H, W, C) float32 in [0, 1].
        sigma: standard deviation in pixels, above 0. It may be traced.
        kernel_size: width of the kernel in pixels, odd and static. Its half is smaller than H and
            W.

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    chex.assert_rank(image, 3)
    rows, columns = (_blur_weights(sigma, kernel_size // 2, side) for side in image.shape[:2])
    return _along_both_axes(rows, columns, image)


def random_gaussian_blur(
    key: jax.Array,
    image: jax.Array,
    kernel_size: int,
    sigma: Range = (0.1, 2.0),
    probability: float = 1.0,
) -> jax.Array:
    """Blur with a uniformly drawn sigma, with the given probability.

    Args:
        key: random key.
        image: (H, W, C) float32 in [0, 1].
        kernel_size: width of the kernel in pixels, odd and static. Its half is smaller than H and
            W.
        sigma: range of the standard deviation, in pixels.
        probability: in [0, 1]; 1 in the STL-10 recipe.

    Returns:
        (H, W, C) float32 in [0, 1].
    """
    sigma_key, apply_key = jax.random.split(key)
    blurred = gaussian_blur(
        image, jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1]), kernel_size
    )
    return jnp.where(jax.random.bernoulli(apply_key, probability), blurred, image)


def _along_both_axes(rows: jax.Array, columns: jax.Array, image: jax.Array) -> jax.Array:
    """Return sum_hw rows[i, h] columns[j, w] image[h, w, c].

    The products are in full precision: an accelerator's default precision would round pixels.
    """
    tall = jnp.einsum("ih,hwc->iwc", rows, image, precision="highest")
    return jnp.einsum("jw,iwc->ijc", columns, tall, precision="highest")


def _resize_weights(start: Scalar, length: Scalar, side: int, size: int) -> jax.Array:
    """Return weights (size, side) that resample [start, start + length) to `size` pixels.

    Output i looks at centre c = (i + 1/2) length / size of the crop through the triangle
    max(0, 1 - |j + 1/2 - c| / max(1, length / size)), normalised over the crop's pixels j: Pillow's
    `precompute_coeffs` with its bilinear filter.
    """
    ratio = length / size
    centre = (jnp.arange(size) + 0.5) * ratio
    pixel = jnp.arange(side) - start
    distance = jnp.abs(pixel[None, :] + 0.5 - centre[:, None]) / jnp.maximum(ratio, 1.0)
    inside = (0 <= pixel) & (pixel < length)
    weights = jnp.maximum(1.0 - distance, 0.0) * inside[None, :]
    return weights / weights.sum(axis=1, keepdims=True)


def _blur_weights(sigma: Scalar, half: int, side: int) -> jax.Array:
    """Return the weights (side, side) of the blur along one axis, with reflected edges.

    Pixel j counts directly and as its mirror images, at -j and 2 (side - 1) - j. An edge pixel is
    its own image and counts once.
    """

    def kernel(offset: jax.Array) -> jax.Array:
        return jnp.exp(-0.5 * (offset / sigma) ** 2) * (jnp.abs(offset) <= half)

    i, j = jnp.arange(side)[:, None], jnp.arange(side)[None, :]
    weights = (
        kernel(j - i) + kernel(-j - i) * (j > 0) + kernel(2 * (side - 1) - j - i) * (j < side - 1)
    )
    return weights / weights.sum(axis=1, keepdims=True)
