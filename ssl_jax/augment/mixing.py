"""Cutout, mixup, CutMix and noise: regularisation of supervised training through its inputs.

The functions take an image (H, W, C) of any number of channels and any scale, normalised or not.
Mixup and CutMix take two examples, each a pair (image, target) whose target (K,) is a distribution
over the classes. Batches are a `vmap` at the call site. A box is given by its central pixel and
clipped at the borders.
"""

import jax
import jax.numpy as jnp

from ssl_jax.types import Scalar

Index = jax.Array | int
Example = tuple[jax.Array, jax.Array]  # (image (H, W, C), target (K,))


def cutout(image: jax.Array, row: Index, column: Index, size: int) -> jax.Array:
    """Set the square around (row, column) to zero (DeVries & Taylor 2017, arXiv 1708.04552).

    Zero is the mean of a normalised image, which is what the paper fills the square with.

    Args:
        image: (H, W, C).
        row: row of the square's centre.
        column: column of the square's centre.
        size: side of the square in pixels.

    Returns:
        (H, W, C).
    """
    return jnp.where(_box(image, row, column, size, size), 0.0, image)


def random_cutout(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Cut out a square whose centre is uniform over the pixels; at a border less is cut out.

    Args:
        key: random key.
        image: (H, W, C).
        size: side of the square in pixels.

    Returns:
        (H, W, C).
    """
    row, column = _random_pixel(key, image)
    return cutout(image, row, column, size)


def mixup(one: Example, other: Example, share: Scalar) -> Example:
    """Return share * one + (1 - share) * other, of the images and of the targets.

    Source: Zhang et al. 2018, arXiv 1710.09412.

    Args:
        one: (image (H, W, C), target (K,)).
        other: the second example, of the same shapes.
        share: () in [0, 1], the paper's lambda.

    Returns:
        (image (H, W, C), target (K,)).
    """
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, one, other)


def random_mixup(key: jax.Array, one: Example, other: Example, alpha: float) -> Example:
    """Apply mixup with a share drawn from Beta(alpha, alpha).

    Args:
        key: random key.
        one: (image (H, W, C), target (K,)).
        other: the second example, of the same shapes.
        alpha: parameter of the distribution, above 0.

    Returns:
        (image (H, W, C), target (K,)).
    """
    return mixup(one, other, jax.random.beta(key, alpha, alpha))


def cutmix(
    one: Example, other: Example, row: Index, column: Index, height: Index, width: Index
) -> Example:
    """Paste a box of the other image into the first and mix the targets by the pasted area.

    Yun et al. 2019 (arXiv 1905.04899), eq. 1. The share of `one` is 1 - area / (H W), after the box
    is clipped at the borders.

    Args:
        one: (image (H, W, C), target (K,)).
        other: the example that the box is taken from, of the same shapes.
        row: row of the box's centre.
        column: column of the box's centre.
        height: rows of the box.
        width: columns of the box.

    Returns:
        (image (H, W, C), target (K,)).
    """
    (image, target), (other_image, other_target) = one, other
    box = _box(image, row, column, height, width)
    share = 1 - box.mean()
    return jnp.where(box, other_image, image), share * target + (1 - share) * other_target


def random_cutmix(key: jax.Array, one: Example, other: Example, alpha: float) -> Example:
    """Apply CutMix with a random box (eq. 2).

    The sides are floor(H sqrt(1 - s)) and floor(W sqrt(1 - s)) with s ~ Beta(alpha, alpha). The
    centre is uniform over the pixels.

    Args:
        key: random key.
        one: (image (H, W, C), target (K,)).
        other: the example that the box is taken from, of the same shapes.
        alpha: parameter of the distribution, above 0.

    Returns:
        (image (H, W, C), target (K,)).
    """
    share_key, pixel_key = jax.random.split(key)
    scale = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    height, width = (jnp.floor(side * scale).astype(jnp.int32) for side in one[0].shape[:2])
    row, column = _random_pixel(pixel_key, one[0])
    return cutmix(one, other, row, column, height, width)


def gaussian_noise(key: jax.Array, image: jax.Array, std: float) -> jax.Array:
    """Add N(0, std^2) to each number, without clipping, so that the noise has mean zero everywhere.

    Args:
        key: random key.
        image: (H, W, C).
        std: standard deviation, in units of the image.

    Returns:
        (H, W, C).
    """
    return image + std * jax.random.normal(key, image.shape, image.dtype)


def _random_pixel(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw (row, column) uniformly."""
    row, column = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    return row, column


def _box(image: jax.Array, row: Index, column: Index, height: Index, width: Index) -> jax.Array:
    """Return a mask (H, W, 1) of the box: rows from row - height // 2 on, columns alike."""

    def inside(side: int, centre: Index, length: Index) -> jax.Array:
        distance = jnp.arange(side) - (centre - length // 2)
        return (0 <= distance) & (distance < length)

    rows, columns = inside(image.shape[0], row, height), inside(image.shape[1], column, width)
    return rows[:, None, None] & columns[None, :, None]
