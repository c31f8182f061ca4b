"""AugMix: its operations against Pillow, its strengths against the authors' code, its mixing in
float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import stats

from ssl_jax.augment import augmix

STEP = 1 / 255
OPERATIONS = (*augmix.VALUE_OPERATIONS, *augmix.AFFINE_OPERATIONS)


def picture(shape=(32, 24, 3), seed=0):
    """8-bit values, smooth enough to have a skew histogram: brighter to the right, dull in the last
    channel.
    """
    noise = np.random.default_rng(seed).random(shape)
    image = 40 + 180 * noise**3 * np.linspace(0.3, 1, shape[1])[None, :, None]
    image[..., -1] = 90 + image[..., -1] / 4
    return image.astype(np.uint8)


def unit(image):
    return image.astype(np.float32) / 255


def by_pillow(operation, image):
    """Greyscale and colour alike, as [0, 1]."""
    modes = image[..., 0] if image.shape[-1] == 1 else image
    return (np.asarray(operation(Image.fromarray(modes))) / 255).reshape(image.shape)


VALUES = {  # name -> ours, Pillow's, tolerance
    "autocontrast": (augmix.autocontrast, ImageOps.autocontrast, 1.01 * STEP),  # Pillow truncates
    "equalize": (augmix.equalize, ImageOps.equalize, 1e-6),
    "posterize 1": (lambda x: augmix.posterize(x, 1), lambda x: ImageOps.posterize(x, 1), 1e-6),
    "posterize 3": (lambda x: augmix.posterize(x, 3), lambda x: ImageOps.posterize(x, 3), 1e-6),
    "solarize 0": (lambda x: augmix.solarize(x, 0), lambda x: ImageOps.solarize(x, 0), 1e-6),
    "solarize 100": (lambda x: augmix.solarize(x, 100), lambda x: ImageOps.solarize(x, 100), 1e-6),
    "solarize 256": (lambda x: augmix.solarize(x, 256), lambda x: ImageOps.solarize(x, 256), 1e-6),
}
PICTURES = {
    "colour": picture(),
    "grey": picture((32, 24, 1)),
    "few pixels": picture((9, 9, 3)),
    "even": np.full((32, 24, 3), 77, np.uint8),
    "two values": np.where(picture() > 60, np.uint8(200), np.uint8(13)),
    "full range": np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3),
}


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES.keys())
@pytest.mark.parametrize("ours, pillows, tolerance", VALUES.values(), ids=VALUES.keys())
def test_values_are_mapped_as_by_pillow(ours, pillows, tolerance, image):
    np.testing.assert_allclose(
        jax.jit(ours)(unit(image)), by_pillow(pillows, image), atol=tolerance
    )


MOVES = {  # name -> coefficients for the shape, Pillow's operation
    "rotate 17": (lambda shape: augmix.rotation(shape, 17.0), lambda x, how: x.rotate(17, how)),
    "rotate -30": (lambda shape: augmix.rotation(shape, -30.0), lambda x, how: x.rotate(-30, how)),
    "shear_x": (
        lambda shape: augmix.shear_x(0.23),
        lambda x, how: pillow_affine(x, (1, 0.23, 0, 0, 1, 0), how),
    ),
    "shear_y": (
        lambda shape: augmix.shear_y(-0.3),
        lambda x, how: pillow_affine(x, (1, 0, 0, -0.3, 1, 0), how),
    ),
    "translate_x": (
        lambda s: augmix.translation(-5.0, 0.0),
        lambda x, how: pillow_affine(x, (1, 0, -5, 0, 1, 0), how),
    ),
    "translate_y": (
        lambda s: augmix.translation(0.0, 7.0),
        lambda x, how: pillow_affine(x, (1, 0, 0, 0, 1, 7), how),
    ),
    "half a pixel": (
        lambda s: augmix.translation(0.5, 0.5),
        lambda x, how: pillow_affine(x, (1, 0, 0.5, 0, 1, 0.5), how),
    ),
    "nothing": (lambda shape: augmix.rotation(shape, 0.0), lambda x, how: x),
}
affine = jax.jit(augmix.affine)


def pillow_affine(image, coefficients, resample):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample=resample)


@pytest.mark.parametrize("coefficients, pillows", MOVES.values(), ids=MOVES.keys())
def test_moves_are_pillows(coefficients, pillows):
    """In float, where Pillow does not round, and in 8 bits, which it truncates to."""
    image = picture()
    found, bilinear = affine(unit(image), coefficients(image.shape)), Image.Resampling.BILINEAR
    channels = [
        np.asarray(pillows(Image.fromarray(unit(image[..., c])), bilinear)) for c in range(3)
    ]
    np.testing.assert_allclose(found, np.stack(channels, axis=-1), atol=2e-5)
    np.testing.assert_allclose(
        found, by_pillow(lambda x: pillows(x, bilinear), image), atol=1.01 * STEP
    )


def authors(name, image, level, sign):
    """The operations of the authors' `augmentations.py`, at a given level and sign: 8 bits in, 8
    bits out.
    """

    def count(largest):
        return int(level * largest / 10)

    def moved(*coefficients):
        return lambda x: pillow_affine(x, coefficients, Image.Resampling.BILINEAR)

    height, width, slope = *image.shape[:2], sign * level * 0.3 / 10
    operations = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda x: ImageOps.posterize(x, 4 - count(4)),
        "solarize": lambda x: ImageOps.solarize(x, 256 - count(256)),
        "rotate": lambda x: x.rotate(sign * count(30), Image.Resampling.BILINEAR),
        "shear_x": moved(1, slope, 0, 0, 1, 0),
        "shear_y": moved(1, 0, 0, slope, 1, 0),
        "translate_x": moved(1, 0, sign * count(width / 3), 0, 1, 0),
        "translate_y": moved(1, 0, 0, 0, 1, sign * count(height / 3)),
    }
    return by_pillow(operations[name], image)


operate = jax.jit(augmix.apply_operation)


@pytest.mark.parametrize("level, sign", [(0.1, 1.0), (2.9, -1.0), (7.7, 1.0), (9.9, -1.0)])
def test_operations_have_the_authors_strengths(level, sign):
    image = picture()
    for which, name in enumerate(OPERATIONS):
        expected = authors(name, image, level, sign)
        found = operate(unit(image), which, level, sign)
        np.testing.assert_allclose(found, expected, atol=1.01 * STEP, err_msg=name)


def test_augmix_is_the_convex_mixture():
    rng = np.random.default_rng(0)
    image, chains, weights = (
        rng.random((5, 4, 3)),
        rng.random((3, 5, 4, 3)),
        rng.dirichlet(np.ones(3)),
    )
    expected = 0.4 * image + 0.6 * np.einsum("i,ihwc->hwc", weights, chains)
    np.testing.assert_allclose(augmix.augmix(image, chains, weights, 0.6), expected, atol=1e-6)


def drawn(monkeypatch, count=1500, severity=4.0):
    """What AugMix draws: (weights, share, chains) with chains showing the operations that were
    applied.

    Operations multiply the picture by 1000 and add 1 + their number; levels and signs are recorded
    in other channels.
    """

    def mark(image, which, level, sign):
        return jnp.concatenate(
            [
                100 * image[..., :1] + which + 1,
                image[..., 1:2] * 0 + level,
                image[..., 2:] * 0 + sign,
            ],
            -1,
        )

    monkeypatch.setattr(augmix, "apply_operation", mark)
    monkeypatch.setattr(
        augmix, "augmix", lambda image, chains, weights, share: (chains[:, 0, 0], weights, share)
    )
    draw = jax.vmap(lambda key: augmix.random_augmix(key, jnp.zeros((1, 1, 3)), severity))
    return map(np.asarray, jax.jit(draw)(jax.random.split(jax.random.key(0), count)))


def test_draws_have_the_papers_distributions(monkeypatch):
    chains, weights, share = drawn(monkeypatch)
    marks = chains[..., 0].astype(int)
    depth = sum((marks >= 100**place).astype(int) for place in range(3))
    assert stats.chisquare(np.bincount(depth.ravel(), minlength=4)[1:]).pvalue > 0.01
    for place in range(3):
        which = (marks[depth > place] // 100**place) % 100
        assert stats.chisquare(np.bincount(which, minlength=10)[1:]).pvalue > 0.01
    assert (
        stats.kstest(chains[..., 1].ravel().astype(np.float64), stats.uniform(0.1, 3.9).cdf).pvalue
        > 0.01
    )
    assert stats.chisquare(np.unique(chains[..., 2], return_counts=True)[1]).pvalue > 0.01
    assert set(np.unique(chains[..., 2])) == {-1.0, 1.0}
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    # one coordinate of Dirichlet(1, 1, 1) is Beta(1, 2)
    for weight in weights.T.astype(np.float64):
        assert stats.kstest(weight, stats.beta(1, 2).cdf).pvalue > 0.01
    assert stats.kstest(share.astype(np.float64), stats.uniform(0, 1).cdf).pvalue > 0.01
    assert len(np.unique(marks[:, 0] == marks[:, 1])) == 2  # chains of one image are drawn apart


def test_batch_of_pictures_stays_in_range_and_differs():
    image, keys = unit(picture((16, 16, 3))), jax.random.split(jax.random.key(1), 4)
    mixed = np.asarray(jax.jit(jax.vmap(lambda key: augmix.random_augmix(key, image, 10)))(keys))
    assert mixed.shape == (4, 16, 16, 3) and mixed.dtype == np.float32
    assert 0 <= mixed.min() and mixed.max() <= 1
    assert (
        min(np.abs(mixed[i] - other).max() for i in range(4) for other in (image, mixed[i - 1]))
        > 0.01
    )
