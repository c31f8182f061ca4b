"""Colour against Pillow, colorsys and NumPy in float64; the random jitter against its
distributions.
"""

import colorsys
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from ssl_jax.augment import colour

GREY = np.array([0.299, 0.587, 0.114])
ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def picture(shape=(12, 9, 3), seed=0):
    """Random colours, and in the first rows pure, grey, black and white ones."""
    image = np.random.default_rng(seed).random(shape, dtype=np.float32)
    image[0, :8] = list(itertools.product([0.0, 1.0], repeat=3))
    image[1] = image[1, :, :1]
    return image


def blend(name, image, factor):
    """A jitter of this operation alone."""
    return colour.colour_jitter(image, {name: 0.0}, {name: factor})


def blend_in_numpy(name, image, factor):
    grey = (image.astype(np.float64) @ GREY)[..., None]
    base = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey}[name]
    return np.clip(factor * image + (1 - factor) * base, 0, 1)


def hue_by_colorsys(image, delta):
    def shift(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + delta) % 1.0, saturation, value)

    return np.apply_along_axis(shift, -1, image.astype(np.float64))


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", ENHANCE)
def test_blends_are_numpys(name, factor):
    image = picture()
    np.testing.assert_allclose(
        blend(name, image, factor), blend_in_numpy(name, image, factor), atol=1e-6
    )


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("name", ENHANCE)
def test_blends_are_pillows_up_to_its_rounding(name, factor):
    """Pillow truncates the blend (one step), and rounds grey and the mean of grey (half a step
    each).
    """
    image = (255 * picture()).astype(np.uint8)
    expected = np.asarray(ENHANCE[name](Image.fromarray(image)).enhance(factor)) / 255
    got = blend(name, image / np.float32(255), factor)
    np.testing.assert_allclose(got, expected, atol=(1 + abs(1 - factor) + 0.01) / 255)


def test_grayscale_is_pillows_up_to_its_rounding():
    image = (255 * picture()).astype(np.uint8)
    grey = colour.grayscale(image / np.float32(255))
    expected = np.asarray(Image.fromarray(image).convert("L"))[..., None] / 255
    np.testing.assert_allclose(grey, np.broadcast_to(expected, grey.shape), atol=0.51 / 255)


@pytest.mark.parametrize("delta", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_that_of_colorsys(delta):
    image = picture()
    np.testing.assert_allclose(
        colour.adjust_hue(image, delta), hue_by_colorsys(image, delta), atol=2e-6
    )


def test_one_channel_is_its_own_grey():
    image = picture()[..., :1]
    expected = np.clip(0.4 * image + 0.6 * image.mean(), 0, 1)
    np.testing.assert_allclose(blend("contrast", image, 0.4), expected, atol=1e-6)
    np.testing.assert_array_equal(colour.grayscale(image), image)


AMOUNT = {"brightness": 1.3, "contrast": 0.5, "saturation": 1.6, "hue": 0.09}


@pytest.mark.parametrize(
    "names",
    [colour.OPERATIONS, colour.BLENDS, ("brightness", "contrast"), ("saturation", "hue"), ("hue",)],
)
def test_jitter_is_the_operations_one_after_the_other(names):
    """Every order in one compiled `vmap`; the amounts are large enough for orders to differ."""
    image, orders = picture(), list(itertools.permutations(names))
    turn = {name: jnp.array([float(order.index(name)) for order in orders]) for name in names}
    amount = {name: AMOUNT[name] for name in names}
    jittered = jax.jit(jax.vmap(lambda turn: colour.colour_jitter(image, turn, amount)))(turn)
    for order, got in zip(orders, jittered, strict=True):
        expected = image
        for name in order:
            apply = (
                hue_by_colorsys if name == "hue" else lambda x, a, n=name: blend_in_numpy(n, x, a)
            )
            expected = apply(expected, AMOUNT[name])
        np.testing.assert_allclose(got, expected, atol=5e-6, err_msg=str(order))


def record_jitter(monkeypatch, count, **strength):
    """(turns, amounts), each (count, operations), that `random_colour_jitter` draws."""

    def recorder(image, turn, amount):
        return jnp.stack([jnp.stack(list(turn.values())), jnp.stack(list(amount.values()))])

    monkeypatch.setattr(colour, "colour_jitter", recorder)
    image = jnp.zeros((2, len(strength)))
    jitter = jax.vmap(
        lambda key: colour.random_colour_jitter(key, image, probability=1.0, **strength)
    )
    drawn = np.asarray(jax.jit(jitter)(jax.random.split(jax.random.key(0), count)), np.float64)
    return drawn[:, 0], drawn[:, 1]


def test_jitter_runs_in_every_order_alike(monkeypatch):
    turns, _ = record_jitter(
        monkeypatch, 4800, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
    )
    _, counts = np.unique(np.argsort(turns, axis=1), axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.01


def test_jitter_draws_uniform_and_independent_amounts(monkeypatch):
    _, amounts = record_jitter(
        monkeypatch, 4000, brightness=0.4, contrast=0.8, saturation=1.5, hue=0.1
    )
    spans = [(0.6, 1.4), (0.2, 1.8), (0.0, 2.5), (-0.1, 0.1)]  # max(0, 1 - x) .. 1 + x; -h .. h
    for amount, (low, high) in zip(amounts.T, spans, strict=True):
        assert stats.kstest(amount, stats.uniform(low, high - low).cdf).pvalue > 0.01
    correlation = np.corrcoef(amounts.T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / math.sqrt(4000)


@pytest.mark.parametrize(
    "operation",
    [
        lambda key, image: colour.random_colour_jitter(key, image, brightness=0.5, probability=0.3),
        lambda key, image: colour.random_grayscale(key, image, 0.3),
    ],
    ids=["jitter", "grayscale"],
)
def test_random_operations_act_with_their_probability(operation):
    image = jnp.array([0.2, 0.5, 0.3]).reshape(1, 1, 3)
    keys = jax.random.split(jax.random.key(4), 4000)
    changed = jax.jit(jax.vmap(lambda key: (operation(key, image) != image).any()))(keys)
    assert abs(np.mean(changed) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_an_operation_of_strength_zero_is_not_traced():
    def primitives(**strength):
        jitter = jax.make_jaxpr(
            lambda key, image: colour.random_colour_jitter(key, image, **strength)
        )
        return str(jitter(jax.random.key(0), picture()))

    assert "random_bits" not in primitives()
    assert "floor" in primitives(hue=0.1) and "floor" not in primitives(
        brightness=0.4, saturation=0.4
    )
    assert "reduce_sum" in primitives(contrast=0.4) and "reduce_sum" not in primitives(
        brightness=0.4, hue=0.1
    )


@pytest.mark.parametrize("threshold", [0, 1, 100, 128, 255, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_solarisation_is_pillows(threshold, channels):
    values = np.arange(256, dtype=np.uint8).repeat(channels).reshape(16, 16, channels)
    theirs = ImageOps.solarize(Image.fromarray(values.squeeze()), threshold)
    found = colour.solarize(jnp.float32(values) / 255, threshold)
    np.testing.assert_allclose(found, np.asarray(theirs).reshape(values.shape) / 255, atol=1e-6)


def test_solarisation_inverts_from_a_half_on():
    """BYOL's formula, for values that 8 bits do not have."""
    x = np.float32([0.0, 0.25, 0.4999, 0.5, 0.5001, 0.9, 1.0]).reshape(1, 7, 1)
    found = colour.solarize(jnp.asarray(x))
    np.testing.assert_allclose(found, np.where(x < 0.5, x, 1 - x), atol=1e-7)


def test_random_solarisation_comes_as_often_as_asked():
    image = jnp.full((2, 2, 3), 0.9)
    for seed, probability in enumerate((0.0, 0.2, 1.0)):
        keys = jax.random.split(jax.random.key(seed), 2000)
        found = jax.vmap(lambda key, p=probability: colour.random_solarize(key, image, p))(keys)
        share = np.asarray(found < 0.5).all((1, 2, 3)).mean()
        assert abs(share - probability) <= 3 * math.sqrt(probability * (1 - probability) / 2000)
