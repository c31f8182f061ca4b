"""Geometry against Pillow, NumPy in float64 and a simulation of torchvision's parameter draw."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ssl_jax.augment import geometry

BOXES = {  # name -> (H, W), (top, left, height, width), size
    "whole, same size": ((32, 32), (0, 0, 32, 32), 32),
    "shrink": ((37, 29), (3, 2, 31, 25), 8),
    "enlarge": ((32, 32), (5, 20, 9, 12), 32),
    "shrink one side, enlarge the other": ((40, 24), (1, 16, 38, 8), 16),
    "one pixel": ((8, 8), (7, 0, 1, 1), 4),
    "shrink to one": ((9, 7), (0, 0, 9, 7), 1),
}


resized_crop = jax.jit(geometry.resized_crop, static_argnames="size")


def picture(shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 3), dtype=np.float32)


def pillow_crop_then_resize(channel, box, size):
    top, left, height, width = box
    cropped = Image.fromarray(channel).crop((left, top, left + width, top + height))
    return np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("shape, box, size", BOXES.values(), ids=BOXES.keys())
def test_resized_crop_is_pillows_in_float(shape, box, size):
    """Pillow's mode F does not round, so the two agree to float32."""
    image = picture(shape)
    expected = np.stack(
        [pillow_crop_then_resize(image[..., c], box, size) for c in range(3)], axis=-1
    )
    np.testing.assert_allclose(resized_crop(image, *box, size=size), expected, atol=3e-6)


@pytest.mark.parametrize("shape, box, size", BOXES.values(), ids=BOXES.keys())
def test_resized_crop_is_pillows_in_eight_bits(shape, box, size):
    """Pillow rounds to 8 bits after the columns and again after the rows: half a step each."""
    image = (255 * picture(shape)).astype(np.uint8)
    expected = pillow_crop_then_resize(image, box, size) / 255
    got = resized_crop(image / np.float32(255), *box, size=size)
    np.testing.assert_allclose(got, expected, atol=1.01 / 255)


def test_resized_crop_sees_no_pixel_outside_of_the_box():
    image, other = picture((16, 20)), picture((16, 20), seed=1)
    box = (slice(4, 11), slice(6, 18))
    other[box] = image[box]
    first, second = (resized_crop(x, 4, 6, 7, 12, size=5) for x in (image, other))
    np.testing.assert_array_equal(first, second)


def test_a_batch_of_boxes_is_cropped_one_by_one():
    image, boxes = picture((12, 12)), np.array([[0, 0, 12, 12], [3, 4, 5, 6]])
    batch = jax.jit(jax.vmap(lambda box: geometry.resized_crop(image, *box, 6)))(boxes)
    for box, got in zip(boxes, batch, strict=True):
        np.testing.assert_allclose(got, resized_crop(image, *box, size=6), atol=1e-6)


def torchvision_box(rng, height, width, scale, ratio):
    """`RandomResizedCrop.get_params` in plain Python; None where it falls back on the centre."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return None


@pytest.mark.parametrize("shape, scale", [((32, 32), (0.08, 1.0)), ((24, 40), (0.3, 0.9))])
def test_random_box_is_distributed_as_torchvisions(shape, scale):
    ratio, count = (3 / 4, 4 / 3), 5000
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(lambda key: jnp.stack(geometry.random_box(key, *shape, scale, ratio))))
    top, left, height, width = np.asarray(draw(keys), np.float64).T
    assert min(top.min(), left.min(), height.min() - 1, width.min() - 1) >= 0
    assert (top + height).max() <= shape[0] and (left + width).max() <= shape[1]
    rng = np.random.default_rng(1)
    boxes = [torchvision_box(rng, *shape, scale, ratio) for _ in range(count)]
    t, le, h, w = np.array([box for box in boxes if box is not None]).T
    pairs = {
        "area": (height * width, h * w),
        "ratio": (width / height, w / h),
        "top": (top, t),
        "left": (left, le),
    }
    for name, (ours, theirs) in pairs.items():
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01, name


@pytest.mark.parametrize(
    "shape, ratio, expected",
    # no box of the whole area fits: the largest central one of an allowed ratio, by torchvision's
    # rule
    [
        ((8, 64), (3 / 4, 4 / 3), (0, 26, 8, 11)),  # round(8 * 4 / 3) = 11; (64 - 11) // 2 = 26
        ((64, 8), (3 / 4, 4 / 3), (26, 0, 11, 8)),  # round(8 / (3 / 4)) = 11
        ((32, 32), (0.5, 0.6), (0, 6, 32, 19)),  # round(32 * 0.6) = 19
    ],
)
def test_random_box_falls_back_on_the_centre(shape, ratio, expected):
    box = jax.jit(lambda key: geometry.random_box(key, *shape, (1.0, 1.0), ratio))(
        jax.random.key(0)
    )
    assert tuple(map(int, box)) == expected


def test_random_resized_crop_of_everything_is_the_image():
    image = picture((16, 16))
    crop = jax.jit(lambda key: geometry.random_resized_crop(key, image, 16, (1.0, 1.0), (1.0, 1.0)))
    np.testing.assert_allclose(crop(jax.random.key(0)), image, atol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_random_flip_mirrors_with_its_probability(probability):
    image, count = picture((2, 3)), 4000
    keys = jax.random.split(jax.random.key(2), count)
    flipped = jax.jit(jax.vmap(lambda key: geometry.random_flip(key, image, probability)))(keys)
    is_mirror = (np.asarray(flipped) == image[:, ::-1]).all(axis=(1, 2, 3))
    is_same = (np.asarray(flipped) == image).all(axis=(1, 2, 3))
    assert (is_mirror ^ is_same).all()
    assert abs(is_mirror.mean() - probability) <= 4 * math.sqrt(
        probability * (1 - probability) / count
    )


@pytest.mark.parametrize("shape", [(12, 17), (5, 5)])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_gaussian_blur_is_a_convolution_with_reflected_edges(shape, sigma):
    image, kernel = picture(shape), np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    padded = np.pad(image.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), mode="valid")
    blur = jax.jit(geometry.gaussian_blur, static_argnames="kernel_size")
    np.testing.assert_allclose(blur(image, sigma, kernel_size=9), padded, atol=1e-6)


def test_random_gaussian_blur_draws_its_strength_and_its_probability():
    """A blurred point shows its sigma: the neighbour is exp(-1 / (2 sigma^2)) of the centre."""
    point = jnp.zeros((9, 9, 1)).at[4, 4].set(1.0)
    keys = jax.random.split(jax.random.key(3), 2000)
    blur = jax.jit(
        jax.vmap(lambda key: geometry.random_gaussian_blur(key, point, 9, (0.2, 2.0), 0.7))
    )
    images = np.asarray(blur(keys), np.float64)
    centre, neighbour = images[:, 4, 4, 0], images[:, 4, 5, 0]
    blurred = neighbour > 0
    assert abs(blurred.mean() - 0.7) < 4 * math.sqrt(0.7 * 0.3 / 2000)
    sigma = np.sqrt(-0.5 / np.log(neighbour[blurred] / centre[blurred]))
    assert stats.kstest(sigma, stats.uniform(0.2, 1.8).cdf).pvalue > 0.01
