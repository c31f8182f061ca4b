"""Cutout, mixup, CutMix and noise: what is done to the inputs of supervised training against overfitting.

They take an image (H, W, C) of any number of channels and any scale, normalised or not; mixup and CutMix take two
examples, each a pair (image, target) with a distribution over the classes (K,) as target. Batches are a `vmap` at the
call site. A box is given by its central pixel and clipped at the borders.
"""

import jax
import jax.numpy as jnp


def cutout(image, row, column, size: int):
    """Set the square of `size` pixels around (row, column) to zero (DeVries & Taylor 2017, arXiv 1708.04552).

    Zero is the mean of a normalised image, which is what the paper fills the square with.
    """
    return jnp.where(_box(image, row, column, size, size), 0.0, image)


def random_cutout(key, image, size: int):
    """The square's centre is any pixel of the image with equal probability: at a border less is cut out."""
    row, column = _random_pixel(key, image)
    return cutout(image, row, column, size)


def mixup(one, other, share):
    """share * one + (1 - share) * other, of the images and of the targets (Zhang et al. 2018, arXiv 1710.09412)."""
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, one, other)


def random_mixup(key, one, other, alpha: float):
    """The share is Beta(alpha, alpha), drawn for this pair."""
    return mixup(one, other, jax.random.beta(key, alpha, alpha))


def cutmix(one, other, row, column, height, width):
    """Paste the other image's box into the one; targets are mixed by the area that came to be pasted.

    Yun et al. 2019 (arXiv 1905.04899), eq. 1, where the share of `one` is 1 - area / (H W) after the clipping.
    """
    (image, target), (other_image, other_target) = one, other
    box = _box(image, row, column, height, width)
    share = 1 - box.mean()
    return jnp.where(box, other_image, image), share * target + (1 - share) * other_target


def random_cutmix(key, one, other, alpha: float):
    """The sides are floor(H sqrt(1 - s)) and floor(W sqrt(1 - s)), s ~ Beta(alpha, alpha); any centre (eq. 2)."""
    share_key, pixel_key = jax.random.split(key)
    scale = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    height, width = (jnp.floor(side * scale).astype(jnp.int32) for side in one[0].shape[:2])
    row, column = _random_pixel(pixel_key, one[0])
    return cutmix(one, other, row, column, height, width)


def gaussian_noise(key, image, std):
    """image + N(0, std^2) in each number; not clipped, so that its mean is zero everywhere."""
    return image + std * jax.random.normal(key, image.shape, image.dtype)


def _random_pixel(key, image):
    """(row, column), uniform."""
    row, column = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    return row, column


def _box(image, row, column, height, width):
    """(H, W, 1), true in the `height` rows from row - height // 2 on, and alike for the columns."""

    def inside(side, centre, length):
        distance = jnp.arange(side) - (centre - length // 2)
        return (0 <= distance) & (distance < length)

    rows, columns = inside(image.shape[0], row, height), inside(image.shape[1], column, width)
    return rows[:, None, None] & columns[None, :, None]
