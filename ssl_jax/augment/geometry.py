"""Crop, resize, flip and blur of one image, with the meaning that Pillow and torchvision give them.

An image is float32 in [0, 1] of shape (H, W, C); batches are a `vmap` at the call site. Whatever mixes pixels
along an axis is written as a matrix product with a (size, H) or (size, W) matrix of weights: box and strength
may then be traced, which shapes may not, and products stay fast where per-example convolutions are slow.
"""

import chex
import jax
import jax.numpy as jnp


def resized_crop(image, top, left, height, width, size):
    """Crop the box, then resize it to (size, size) as Pillow's bilinear `Image.resize` does.

    Crop first: no pixel outside the box is used. When shrinking, the triangle widens with the ratio (Pillow's
    antialiasing). The box is traced: whole numbers with 0 <= top, top + height <= H, and alike for the width.
    """
    chex.assert_rank(image, 3)
    rows = _resize_weights(top, height, image.shape[0], size)
    columns = _resize_weights(left, width, image.shape[1], size)
    return _along_both_axes(rows, columns, image)


def random_resized_crop(key, image, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """The resized crop of a box drawn by `random_box`: torchvision's `RandomResizedCrop`."""
    height, width, _ = image.shape
    return resized_crop(image, *random_box(key, height, width, scale, ratio), size=size)


def random_box(key, height, width, scale, ratio):
    """(top, left, height, width) as torchvision's `RandomResizedCrop.get_params` draws them.

    Area U(scale) of the image's, ratio width / height log-uniform in `ratio`, sides rounded; the first of ten
    draws that fits, placed uniformly; when none fits, the largest central box of an allowed ratio.
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


def _central_box(height, width, ratio):
    """(top, left, height, width) of the largest central box of an allowed ratio: plain numbers."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def flip_left_right(image):
    """Mirror the columns."""
    return image[:, ::-1]


def random_flip(key, image, probability=0.5):
    """Mirror the columns with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), flip_left_right(image), image)


def gaussian_blur(image, sigma, kernel_size):
    """Convolve both axes with exp(-d^2 / (2 sigma^2)), |d| <= kernel_size // 2, normalised.

    torchvision's `gaussian_blur`: edges are reflected, the edge pixel not repeated. `kernel_size` is odd and
    static, and its half is smaller than either side of the image.
    """
    chex.assert_rank(image, 3)
    rows, columns = (_blur_weights(sigma, kernel_size // 2, side) for side in image.shape[:2])
    return _along_both_axes(rows, columns, image)


def random_gaussian_blur(key, image, kernel_size, sigma=(0.1, 2.0), probability=1.0):
    """Blur with sigma uniform in the range, with the given probability (always, in the STL-10 recipe)."""
    sigma_key, apply_key = jax.random.split(key)
    blurred = gaussian_blur(image, jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1]), kernel_size)
    return jnp.where(jax.random.bernoulli(apply_key, probability), blurred, image)


def _along_both_axes(rows, columns, image):
    """sum_hw rows[i, h] columns[j, w] image[h, w, c]; full precision, or accelerators round pixels."""
    tall = jnp.einsum("ih,hwc->iwc", rows, image, precision="highest")
    return jnp.einsum("jw,iwc->ijc", columns, tall, precision="highest")


def _resize_weights(start, length, side, size):
    """(size, side) weights that resample [start, start + length) of an axis to `size` places.

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


def _blur_weights(sigma, half, side):
    """(side, side) weights of the blur: place j is seen directly, and as its mirror images in both edges.

    The mirror images of j lie at -j and 2 (side - 1) - j; an edge pixel is its own image and counts once.
    """

    def kernel(offset):
        return jnp.exp(-0.5 * (offset / sigma) ** 2) * (jnp.abs(offset) <= half)

    i, j = jnp.arange(side)[:, None], jnp.arange(side)[None, :]
    weights = kernel(j - i) + kernel(-j - i) * (j > 0) + kernel(2 * (side - 1) - j - i) * (j < side - 1)
    return weights / weights.sum(axis=1, keepdims=True)
