"""Cutout, mixup, CutMix and noise against the papers' formulas in NumPy, and the distributions of
what they draw.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssl_jax.augment import mixing

SHAPE = (8, 11, 2)


def example(seed):
    """An image and its target."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1, SHAPE).astype(np.float32), rng.dirichlet(np.ones(3)).astype(
        np.float32
    )


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def box_by_slices(shape, row, column, height, width):
    """The papers' code: corners around the centre, clipped."""
    mask = np.zeros(shape, bool)
    top, left = row - height // 2, column - width // 2
    mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    return mask


BOXES = [(4, 5, 4, 6), (0, 0, 4, 4), (7, 10, 5, 3), (3, 2, 1, 1), (3, 2, 0, 4), (4, 5, 30, 30)]


@pytest.mark.parametrize(
    "row, column, size", [(4, 5, 4), (0, 0, 4), (7, 10, 5), (3, 3, 1), (3, 3, 40)]
)
def test_cutout_zeroes_the_square_clipped_at_the_borders(row, column, size):
    image, _ = example(0)
    expected = np.where(box_by_slices(SHAPE[:2], row, column, size, size)[..., None], 0, image)
    np.testing.assert_array_equal(mixing.cutout(image, row, column, size), expected)


def test_random_cutout_has_every_pixel_as_its_centre_alike():
    image = jnp.ones(SHAPE)
    cut = jax.jit(jax.vmap(lambda key: mixing.random_cutout(key, image, 1)[..., 0]))(keys(4000))
    counts = np.asarray(1 - cut).sum(axis=0)
    assert counts.sum() == 4000 and stats.chisquare(counts.ravel()).pvalue > 0.01


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_mixes_image_and_target_alike(share):
    one, other = example(0), example(1)
    for found, a, b in zip(mixing.mixup(one, other, share), one, other, strict=True):
        np.testing.assert_allclose(found, share * a + (1 - share) * b, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_mixups_share_is_beta(alpha):
    """Told from the target, as the image's is the same."""
    one, other = (
        (jnp.ones((1, 1, 1)), jnp.array([1.0, 0.0])),
        (jnp.zeros((1, 1, 1)), jnp.array([0.0, 1.0])),
    )
    image, target = jax.jit(jax.vmap(lambda key: mixing.random_mixup(key, one, other, alpha)))(
        keys(1000)
    )
    np.testing.assert_allclose(image[:, 0, 0, 0], target[:, 0], atol=1e-6)
    assert (
        stats.kstest(np.asarray(target[:, 0], np.float64), stats.beta(alpha, alpha).cdf).pvalue
        > 0.01
    )


@pytest.mark.parametrize("box", BOXES)
def test_cutmix_pastes_the_box_and_mixes_targets_by_the_pasted_area(box):
    one, other = example(0), example(1)
    image, target = mixing.cutmix(one, other, *box)
    mask = box_by_slices(SHAPE[:2], *box)
    np.testing.assert_array_equal(image, np.where(mask[..., None], other[0], one[0]))
    share = 1 - mask.sum() / mask.size
    np.testing.assert_allclose(target, share * one[1] + (1 - share) * other[1], atol=1e-6)
    assert float(target.sum()) == pytest.approx(1, abs=1e-6)


def test_random_cutmix_pastes_what_the_authors_draw():
    """Row and column of the box's corner and its area, against their `rand_bbox` simulated in
    NumPy.
    """
    side, count, alpha = 16, 3000, 1.0
    one, other = (
        (jnp.zeros((side, side, 1)), jnp.array([1.0, 0.0])),
        (jnp.ones((side, side, 1)), jnp.array([0.0, 1.0])),
    )
    image, target = jax.jit(jax.vmap(lambda key: mixing.random_cutmix(key, one, other, alpha)))(
        keys(count)
    )
    pasted = np.asarray(image)[..., 0]
    np.testing.assert_allclose(target[:, 1], pasted.mean(axis=(1, 2)), atol=1e-6)
    rng = np.random.default_rng(1)
    cut = np.floor(side * np.sqrt(1 - rng.beta(alpha, alpha, count))).astype(int)
    boxes = [box_by_slices((side, side), *rng.integers(0, side, 2), c, c) for c in cut]
    drawn = {
        "area": lambda box: box.sum(),
        "row": lambda box: box.any(1).argmax(),
        "column": lambda b: b.any(0).argmax(),
    }
    for name, measure in drawn.items():
        ours, theirs = [measure(box > 0) for box in pasted], [measure(box) for box in boxes]
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01, name


def test_noise_is_gaussian_about_the_image():
    image = np.linspace(-1, 1, 4000, dtype=np.float32).reshape(40, 50, 2)
    noise = np.asarray(mixing.gaussian_noise(jax.random.key(0), image, 0.2) - image, np.float64)
    assert stats.kstest(noise.ravel(), stats.norm(0, 0.2).cdf).pvalue > 0.01
