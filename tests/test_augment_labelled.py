"""The augmentation of supervised training: what is off does nothing, what is on does what its parts
do.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssl_jax.augment import labelled
from ssl_jax.augment.labelled import make_augment
from ssl_jax.errors import UserError

SIDE, CLASSES = 8, 5
STATISTICS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
# what an example goes through by itself
ALONE = dict(flip=0.5, crop_padding=2, jitter=0.8, cutout=3, noise=0.1)


def batch(count=6, channels=3):
    """Images, and targets that tell the examples apart."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (count, SIDE, SIDE, channels), dtype=np.uint8)
    return image, rng.dirichlet(np.ones(CLASSES), count).astype(np.float32)


def keys(count=6, seed=3):
    return jax.random.split(jax.random.key(seed), count)


def normalised(image):
    return (image / 255 - np.array(STATISTICS["mean"])) / np.array(STATISTICS["std"])


def run(channels=3, count=6, seed=3, **fields):
    image, target = batch(count, channels)
    statistics = STATISTICS if channels == 3 else {}
    augment = make_augment(image_size=SIDE, **{"flip": 0.0, **statistics, **fields})
    return jax.jit(augment)(keys(count, seed), image, target)


def test_all_off_is_the_normalisation_alone():
    """Nothing else is left in the compiled program: no random number, no loop, no copy."""
    image, target = batch()
    augment = jax.jit(make_augment(image_size=SIDE, flip=0.0, **STATISTICS))
    (found,), same = augment(keys(), image, target)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, normalised(image), atol=1e-5)
    np.testing.assert_array_equal(same, target)
    program = augment.lower(keys(), image, target).as_text()
    assert not re.search(r"threefry|while|shift|concatenate", program)


@pytest.mark.parametrize(
    "channels, rest", [(1, {"jitter": 0.8}), (3, {**ALONE, "mixup": 0.2, "cutmix": 1.0})]
)
def test_all_on_gives_three_finite_images_and_a_distribution(channels, rest):
    images, target = run(channels, augmix=True, **rest)
    assert len(images) == 3
    for image in images:
        assert image.shape == (6, SIDE, SIDE, channels) and image.dtype == jnp.float32
        assert np.isfinite(image).all()
    np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
    assert min(np.abs(images[i] - images[i - 1]).max() for i in range(3)) > 0.2


def test_an_example_follows_from_its_key_and_pixels_where_nothing_mixes():
    image, target = batch()
    augment = jax.jit(make_augment(image_size=SIDE, **ALONE, **STATISTICS))
    order = np.array([4, 2, 0, 5, 3, 1])
    (whole,), _ = augment(keys(), image, target)
    (mixed,), _ = augment(keys()[order], image[order], target[order])
    np.testing.assert_allclose(mixed, whole[order], atol=1e-5)


def test_flip_mirrors_some_images():
    image = normalised(batch(40)[0])
    (found,), _ = run(count=40, flip=0.5)
    straight = np.abs(found - image).max(axis=(1, 2, 3)) < 1e-4
    mirrored = np.abs(found - image[:, :, ::-1]).max(axis=(1, 2, 3)) < 1e-4
    assert (straight ^ mirrored).all() and 10 <= straight.sum() <= 30


def test_padded_crop_takes_each_window_of_the_padded_image_alike():
    image, padding = np.arange(1.0, 13).reshape(3, 4, 1), 2
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    windows = {(t, le): padded[t : t + 3, le : le + 4] for t in range(5) for le in range(5)}
    crop = jax.jit(jax.vmap(lambda key: labelled.random_padded_crop(key, image, padding)))
    found, counts = np.asarray(crop(keys(2000))), []
    for place, window in windows.items():
        np.testing.assert_array_equal(labelled.padded_crop(image, *place, padding), window)
        counts.append(np.all(found == window[None], axis=(1, 2, 3)).sum())
    assert sum(counts) == 2000 and stats.chisquare(counts).pvalue > 0.01


def test_crop_pads_with_black():
    (found,), _ = run(count=40, crop_padding=SIDE)
    corners = np.asarray(found)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    black = np.abs(corners - normalised(np.zeros(3))[None, None]).max(axis=-1) < 1e-5
    assert black.any(axis=1).mean() > 0.9


def test_jitter_changes_images_with_its_probability():
    image, (found,) = normalised(batch(40)[0]), run(count=40, jitter=0.5)[0]
    assert 10 <= (np.abs(found - image).max(axis=(1, 2, 3)) > 1e-4).sum() <= 30


def test_cutout_leaves_a_square_of_zeros():
    image, (found,) = normalised(batch(40)[0]), run(count=40, cutout=4)[0]
    cut = np.all(np.asarray(found) == 0, axis=-1)
    np.testing.assert_allclose(np.asarray(found)[~cut], image[~cut], atol=1e-5)
    assert cut.any(axis=(1, 2)).all() and cut.sum(axis=(1, 2)).max() == 16


def test_noise_has_its_deviation_in_normalised_units():
    noise = np.asarray(run(count=40, noise=0.3)[0][0]) - normalised(batch(40)[0])
    assert stats.kstest(noise.ravel()[::7], stats.norm(0, 0.3).cdf).pvalue > 0.01


def fit_share(found, target, count=40):
    """The share of each example itself that its target tells, the rest being its mirror's."""
    difference = target - target[::-1]
    return np.sum((found - target[::-1]) * difference, axis=1) / np.sum(difference**2, axis=1)


def test_mixup_mixes_with_the_mirror_in_the_batch():
    image, target = batch(40)
    (found,), mixed = run(count=40, mixup=1.0)
    share = fit_share(np.asarray(mixed), target)
    assert 0 <= share.min() and share.max() <= 1 and len(np.unique(share)) == 40
    np.testing.assert_allclose(
        mixed, share[:, None] * target + (1 - share[:, None]) * target[::-1], atol=1e-5
    )
    share, image = share[:, None, None, None], normalised(image)
    np.testing.assert_allclose(found, share * image + (1 - share) * image[::-1], atol=1e-4)


def test_both_mixings_share_the_examples_between_them():
    """CutMix leaves every pixel as it was in one of two images, mixup next to none."""
    image, target = normalised(batch(60)[0]), batch(60)[1]
    (found,), mixed = run(count=60, mixup=1.0, cutmix=1.0)
    kept = np.all(np.abs(found - image) < 1e-5, axis=-1)
    pasted = np.all(np.abs(found - image[::-1]) < 1e-5, axis=-1)
    by_cutmix = (kept | pasted).all(axis=(1, 2))
    assert 15 <= by_cutmix.sum() <= 45 and not (kept | pasted)[~by_cutmix].any()
    share = fit_share(np.asarray(mixed), target)
    np.testing.assert_allclose(share[by_cutmix], kept.mean(axis=(1, 2))[by_cutmix], atol=1e-4)


def test_the_images_of_an_example_share_crop_square_and_partner_but_not_the_noise(monkeypatch):
    """With an AugMix that does nothing, the three images are one."""
    monkeypatch.setattr(labelled, "random_augmix", lambda key, image, severity: image)
    images, _ = run(flip=0.5, crop_padding=2, cutout=3, cutmix=1.0, augmix=True, noise=1e-3)
    for image, other in zip(images, images[1:] + images[:1], strict=True):
        assert 1e-3 < np.abs(image - other).max() < 1e-2


def test_augmix_leaves_one_image_clean_and_comes_alone_without_consistency(monkeypatch):
    """Two independent draws of the strength that was asked for."""
    monkeypatch.setattr(
        labelled, "random_augmix", lambda key, x, severity: x + severity * jax.random.uniform(key)
    )
    image = normalised(batch()[0])
    (clean, *versions), _ = run(augmix=True, augmix_severity=10)
    np.testing.assert_allclose(clean, image, atol=1e-5)
    added = (np.array(versions) - np.array(clean)) * np.array(STATISTICS["std"])
    draws = added[:, :, 0, 0, 0]
    np.testing.assert_allclose(added - draws[:, :, None, None, None], 0, atol=1e-4)
    assert 0 < draws.min() and 3 < draws.max() < 10 and len(np.unique(draws.round(4))) == 12
    (alone,), _ = run(augmix=True, consistency=0)
    assert np.abs(alone - image).min() > 0.001


@pytest.mark.parametrize(
    "field, value, takes",
    [
        ("flip", 1.5, "a number from 0 to 1"),
        ("flip", True, "a number from 0 to 1"),
        ("jitter", "much", "a number from 0 to 1"),
        ("crop_padding", 9, "a whole number from 0 to 8"),
        ("crop_padding", 1.0, "a whole number from 0 to 8"),
        ("cutout", -1, "a whole number from 0 to 8"),
        ("noise", -0.1, "a number of 0 or more"),
        ("mixup", float("nan"), "a number of 0 or more"),
        ("cutmix", -1.0, "a number of 0 or more"),
        ("augmix", 1, "True or False"),
        ("augmix_severity", 0, "a number from 1 to 10"),
        ("augmix_severity", 11, "a number from 1 to 10"),
        ("consistency", -12.0, "a number of 0 or more"),
    ],
)
def test_an_illegal_value_is_named_with_its_field(field, value, takes):
    with pytest.raises(UserError) as error:
        make_augment(image_size=SIDE, **{field: value})
    assert str(error.value) == f"augment.{field}: got {value!r}, takes {takes}"


def test_images_of_another_size_are_refused():
    with pytest.raises(AssertionError):
        make_augment(image_size=9, **STATISTICS)(keys(), *batch())
