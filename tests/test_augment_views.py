"""Views: recipes, independence of batch and place, normalisation, and what users may get wrong."""

import jax
import numpy as np
import pytest

from ssl_jax.augment import colour, geometry, views
from ssl_jax.errors import UserError

NOTHING = dict(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0
)


def pictures(batch=6, size=12, channels=3):
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, channels), dtype=np.uint8)


def example_keys(which=slice(None)):
    """Keys of six examples, made anew: a key is used once."""
    return jax.random.split(jax.random.key(7), 6)[which]


@pytest.fixture(scope="module")
def make():
    """Views by the recipe with all operations in it, compiled once."""
    return jax.jit(views.make_views(views.make_recipe("stl10", blur=0.5), 10))


def test_a_view_follows_from_key_and_image_whatever_the_batch(make):
    """In another order, and alone: every example gets the views it got in the batch."""
    image, order = pictures(), np.array([4, 2, 0, 5, 3, 1])
    whole, mixed = make(example_keys(), image), make(example_keys(order), image[order])
    recipe = views.make_recipe("stl10", blur=0.5)
    alone = jax.jit(lambda key, x: views.augment(key, views.to_unit(x), recipe, 10))
    for v, (view, of_mixed) in enumerate(zip(whole, mixed, strict=True)):
        assert view.shape == (6, 10, 10, 3) and view.dtype == np.float32
        np.testing.assert_allclose(of_mixed, view[order], atol=1e-5)
        for i in (0, 3):
            key = jax.random.split(example_keys(i))[v]
            np.testing.assert_allclose(alone(key, image[i]), view[i], atol=1e-5)


def test_views_of_one_image_and_of_equal_images_differ(make):
    """The same picture six times: twelve views, no two alike."""
    image = np.broadcast_to(pictures()[:1], (6, 12, 12, 3))
    flat = np.concatenate(make(example_keys(), image)).reshape(12, -1)
    distance = np.abs(flat[:, None] - flat[None]).mean(axis=-1)
    assert distance[~np.eye(12, dtype=bool)].min() > 0.02


def test_digits_of_one_channel_have_views():
    recipe, image = views.make_recipe("digits"), pictures(4, 8, 1)
    keys = jax.random.split(jax.random.key(1), 4)
    for view in jax.jit(views.make_views(recipe, 8))(keys, image):
        assert view.shape == image.shape
        picture = views.to_display(view, recipe.mean, recipe.std)
        np.testing.assert_allclose(
            views.normalise(picture, recipe.mean, recipe.std), view, atol=1e-5
        )


def test_a_recipe_of_nothing_only_normalises(monkeypatch):
    """What is off is not even called."""
    for name in ("random_flip", "random_gaussian_blur"):
        monkeypatch.delattr(geometry, name)
    for name in ("random_colour_jitter", "random_grayscale"):
        monkeypatch.delattr(colour, name)
    image, recipe = pictures(), views.make_recipe("cifar", **NOTHING)
    expected = (image / 255 - np.array([0.4914, 0.4822, 0.4465])) / np.array(
        [0.2023, 0.1994, 0.2010]
    )
    for view in jax.jit(views.make_views(recipe, 12))(example_keys(), image):
        np.testing.assert_allclose(view, expected, atol=1e-5)


@pytest.mark.parametrize(
    "mean, std", [((0.3,), (0.5,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), ((0.0,), (1.0,))]
)
def test_normalise_and_back(mean, std):
    image = pictures()
    normalised = views.make_normalise(mean, std)(image)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(
        normalised, (image / 255 - np.array(mean)) / np.array(std), atol=1e-5
    )
    np.testing.assert_allclose(views.to_display(normalised, mean, std), image / 255, atol=1e-6)
    np.testing.assert_allclose(views.normalise(image[0], mean, std), normalised[0], atol=1e-6)


def test_overrides_replace_fields_and_none_keeps_them():
    recipe = views.make_recipe("stl10", flip=0.0, crop_scale=[0.2, 1.0], hue=None)
    assert recipe == views.RECIPES["stl10"]._replace(flip=0.0, crop_scale=[0.2, 1.0])


@pytest.mark.parametrize(
    "field, value",
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.2)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (1.0,)),
        ("flip", 1.5),
        ("brightness", -0.1),
        ("contrast", "much"),
        ("saturation", float("nan")),
        ("hue", 0.6),
        ("jitter", True),
        ("gray", -1),
        ("blur", 2),
        ("blur_kernel", 8),
        ("blur_kernel", 9.0),
        ("blur_sigma", (0.0, 2.0)),
        ("mean", ()),
        ("std", (0.2, 0.0, 0.2)),
    ],
)
def test_an_illegal_value_is_named_with_its_field(field, value):
    with pytest.raises(UserError) as error:
        views.make_recipe("cifar", **{field: value})
    assert f"views.{field}: got {value!r}, takes " in str(error.value)


def test_an_unknown_recipe_or_field_is_told_the_known_ones():
    with pytest.raises(UserError, match=r"views\.recipe: got 'cifra', did you mean 'cifar'"):
        views.make_recipe("cifra")
    with pytest.raises(UserError, match=r"views\.flipp: .*did you mean 'flip'"):
        views.make_recipe("cifar", flipp=0.5)


def test_a_blur_wider_than_the_image_is_refused():
    with pytest.raises(UserError, match=r"views\.blur_kernel: got 9, takes .* 4 pixels"):
        views.make_views(views.make_recipe("stl10"), 4)


@pytest.mark.parametrize("field", ["saturation", "hue", "gray"])
def test_colours_of_one_channel_are_refused(field):
    make = views.make_views(views.make_recipe("digits", **{field: 0.1}), 12)
    with pytest.raises(
        UserError, match=rf"views\.{field}: got 0\.1, takes 0 for images of 1 channel"
    ):
        make(example_keys(), pictures(channels=1))


@pytest.mark.parametrize("field", ["mean", "std"])
def test_a_mean_of_another_number_of_channels_is_refused(field):
    recipe = views.Recipe(**{field: (0.1, 0.2)})
    with pytest.raises(UserError, match=r"views\.mean"):
        views.make_normalise(recipe.mean, recipe.std)(pictures())
    with pytest.raises(UserError, match=r"views\.mean"):
        views.check_channels(recipe, 3)
    views.check_channels(recipe._replace(gray=0.0, jitter=0.0), 2)
