"""Views: recipes, independence of batch and place, normalisation, and what users may get wrong."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

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
    for name in ("random_colour_jitter", "random_grayscale", "random_solarize"):
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
        ("blur_second", -0.1),
        ("blur_kernel", 8),
        ("blur_kernel", 9.0),
        ("blur_kernel", -1),
        ("size", -1),
        ("size", 8.0),
        ("solarize", 1.1),
        ("solarize_second", True),
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
    with pytest.raises(UserError, match=r"views\.blur_kernel: got 9, takes .* views of 4 pixels"):
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
    recipe = views.RECIPES["stl10"]._replace(**{field: (0.1, 0.2)})
    with pytest.raises(UserError, match=r"views\.mean"):
        views.make_normalise(recipe.mean, recipe.std)(pictures())
    with pytest.raises(UserError, match=r"views\.mean"):
        views.check_channels(recipe, 3)
    views.check_channels(recipe._replace(gray=0.0, jitter=0.0), 2)


# --- Two sides ------------------------------------------------------------------------------------


def former_view(key, image, recipe, size):
    """A view by the operations that recipes had before the sides could differ, in their order."""
    crop, flip, jitter, gray, blur = jax.random.split(key, 5)
    image = geometry.random_resized_crop(crop, image, size, recipe.crop_scale, recipe.crop_ratio)
    if recipe.flip:
        image = geometry.random_flip(flip, image, recipe.flip)
    strengths = {name: getattr(recipe, name) for name in colour.OPERATIONS}
    image = colour.random_colour_jitter(jitter, image, probability=recipe.jitter, **strengths)
    if recipe.gray:
        image = colour.random_grayscale(gray, image, recipe.gray)
    if recipe.blur:
        image = geometry.random_gaussian_blur(blur, image, recipe.blur_kernel, (0.1, 2.0), 1.0)
    return views.normalise(image, recipe.mean, recipe.std)


@pytest.mark.parametrize("name", ["cifar", "stl10", "digits"])
def test_recipes_of_one_kind_draw_as_they_did_before(name):
    """The same keys give the same bits, with nothing of the second side in them."""
    recipe, image = views.RECIPES[name], pictures(channels=1 if name == "digits" else 3)

    def former(keys, image):
        def two(key, x):
            one = jax.vmap(lambda k: former_view(k, x, recipe, 12))
            return one(jax.random.split(key))

        return jax.vmap(two, out_axes=1)(keys, views.to_unit(image))

    ours = jax.jit(views.make_views(recipe, 12))(example_keys(), image)
    for one, other in zip(ours, jax.jit(former)(example_keys(), image), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_side_has_its_own_blur_and_solarisation():
    """Of a grey ramp, of which nothing else moves a pixel: BYOL's table 6 for each side."""
    # in the middle of a ramp a blur changes nothing; beside its step from white to black it does
    column = np.r_[np.linspace(40, 240, 16), np.full(16, 240)].round().astype(np.uint8)
    image = np.tile(column[None, None, :, None], (400, 32, 1, 3))
    still = NOTHING | {"blur": None, "mean": (0.0,), "std": (1.0,)}
    recipe = views.make_recipe("photo", **still)
    keys = jax.random.split(jax.random.key(3), 400)
    found = jax.jit(views.make_views(recipe, 32))(keys, image)
    inverted = [(np.asarray(view)[:, 5, 31, 0] < 0.5).mean() for view in found]
    assert inverted[0] == 0 and abs(inverted[1] - 0.2) < 3 * np.sqrt(0.2 * 0.8 / 400)
    sharp = column[15] / 255
    at_the_step = [np.asarray(view)[:, 5, 15, 0] for view in found]
    # a sigma near 0.1 blurs too little to be seen: up to 0.25 of the draws' range 0.1 to 2
    blurred = [(np.minimum(abs(v - sharp), abs(v - 1 + sharp)) > 1e-5).mean() for v in at_the_step]
    assert blurred[0] > 0.85 and 0.04 < blurred[1] < 0.16


def test_the_sides_are_drawn_apart():
    first, second = views.sides(views.RECIPES["photo"])
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    assert views.sides(views.RECIPES["stl10"])[0] == views.sides(views.RECIPES["stl10"])[1]
    recipe = views.make_recipe(
        "photo", mean=(0.0,), std=(1.0,), blur_second=0.99, solarize_second=0
    )
    image = np.broadcast_to(pictures()[:1], (6, 12, 12, 3))
    first, second = jax.jit(views.make_views(recipe, 12))(example_keys(), image)
    assert np.abs(first - second).mean(axis=(1, 2, 3)).min() > 0.01


def test_a_kernel_is_a_tenth_of_the_side():
    """23 pixels of 224, as BYOL writes; 9 of 96, as Tian's code has for STL-10."""
    assert [views.blur_kernel(size) for size in (8, 19, 20, 32, 96, 224)] == [1, 1, 3, 3, 9, 23]


# --- Sizes and statistics -------------------------------------------------------------------------


def test_views_are_cut_at_the_recipes_size():
    """From 12 stored pixels: views of 8, and the central 8 pixels for the probes."""
    recipe = views.make_recipe("stl10", **NOTHING, size=8)
    image = pictures()
    for view in jax.jit(views.make_views(recipe, 12))(example_keys(), image):
        assert view.shape == (6, 8, 8, 3)
    seen = views.evaluation_view(recipe)(image)
    np.testing.assert_allclose(seen, image[:, 2:10, 2:10] / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 9, 9, 3), (5, 9, 13, 1), (9, 14, 3)])
def test_a_central_crop_leaves_as_much_on_either_side(shape):
    image = np.random.default_rng(0).random(shape)
    height, width = shape[-3:-1]
    found = geometry.central_crop(image, 5)
    top, left = (height - 5) // 2, (width - 5) // 2
    assert abs((height - 5 - top) - top) <= 1 and abs((width - 5 - left) - left) <= 1
    rows = np.take(image, range(top, top + 5), axis=-3)
    np.testing.assert_array_equal(found, np.take(rows, range(left, left + 5), axis=-2))


def test_without_a_size_probes_see_images_that_are_not_square_whole():
    image = np.zeros((2, 6, 9, 3), np.uint8)
    assert views.evaluation_view(views.RECIPES["stl10"])(image).shape == (2, 6, 9, 3)


@pytest.mark.parametrize("shape", [(40, 8, 8, 1), (300, 5, 7, 3), (1, 3, 3, 3)])
def test_measured_statistics_are_numpys(shape):
    rng = np.random.default_rng(1)
    image = (rng.random(shape) ** 3 * 250).astype(np.uint8)
    mean, std = views.measure(image)
    unit = image.astype(np.float64) / 255
    assert mean == pytest.approx(unit.mean((0, 1, 2)), rel=6e-6)
    assert std == pytest.approx(unit.std((0, 1, 2)), rel=6e-6)


def test_measured_statistics_of_photographs_are_exact():
    """Two of 427x640: their values leave 32 bits, and a sum of float32 would be wrong."""
    image = np.stack(load_sample_images().images)
    mean, std = views.measure(image)
    values = image.reshape(-1, 3).astype(object)
    exact = [sum(channel.tolist()) / len(values) / 255 for channel in values.T]
    assert mean == tuple(float(f"{m:.6g}") for m in exact)
    assert std == pytest.approx((image / 255).std((0, 1, 2)), rel=6e-6)


def test_a_constant_channel_is_not_scaled():
    image = pictures()
    image[..., 1] = 51
    mean, std = views.measure(image)
    assert (mean[1], std[1]) == (0.2, 1.0) and std[0] < 0.4
    # one pixel that is one brighter is no constant channel
    image[0, 0, 0, 1] = 52
    assert 0 < views.measure(image)[1][1] < 1e-3


def test_the_statistics_of_a_large_set_are_those_of_a_drawn_part():
    """Sorted by brightness: the first images alone would be darker than all."""
    image = np.repeat(np.arange(200, dtype=np.uint8), 16).reshape(200, 4, 4, 1)
    mean, std = views.measure(image, most=50)
    assert mean == views.measure(image, most=50)[0]  # the draw has a seed
    assert views.measure(image, most=50, seed=1)[0] != mean
    assert mean[0] == pytest.approx(image.mean() / 255, rel=0.2)
    assert std[0] == pytest.approx(image.std() / 255, rel=0.2)
    assert views.measure(image, most=200)[0] == pytest.approx([image.mean() / 255], rel=6e-6)


def test_a_recipe_without_statistics_is_named():
    make = views.make_views(views.make_recipe("photo"), 12)
    with pytest.raises(UserError, match=r"views\.mean, views\.std: got None, None"):
        make(example_keys(), pictures())
    with pytest.raises(UserError, match=r"views\.mean, views\.std: got \(0\.5,\), None"):
        views.evaluation_view(views.make_recipe("photo", mean=(0.5,)))
