"""Swin against NumPy in float64, pair of pixels by pair, from arrays named and laid out as timm has
them.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import erf

from ssl_jax.models import load_weights, make_classifier, make_encoder
from ssl_jax.models.swin import (
    attention_mask,
    relative_index,
    window_and_shift,
    window_partition,
    window_reverse,
)

DEPTHS, WIDTH, HEAD = (2, 1, 1, 1), 32, 32


def norm(x, file, name):
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return x * file[f"{name}.weight"] + file[f"{name}.bias"]


def linear(x, file, name):
    return x @ file[f"{name}.weight"].T + file.get(f"{name}.bias", 0.0)


def sides(height, width, shifted):
    """Window and shift: no larger than the grid, and shifted only where it is smaller."""
    window = [min(height, 7), min(width, 7)]
    return window, [
        w // 2 if shifted and n > w else 0 for n, w in zip((height, width), window, strict=True)
    ]


def zone(place, length, window, shift):
    """Of a pixel along one axis after the shift: before the last window, in it, or come round."""
    return 0 if not shift or place < length - window else 1 if place < length - shift else 2


def attention(x, file, name, shifted):
    """One image (H, W, C): each pixel of a window attends to all of it, padding included."""
    height, width, channels = x.shape
    (wh, ww), (sh, sw) = sides(height, width, shifted)
    x = np.roll(x, (-sh, -sw), (0, 1))
    x = np.pad(x, ((0, -height % wh), (0, -width % ww), (0, 0)))
    q, k, v = np.split(linear(x, file, f"{name}.qkv"), 3, -1)
    table, heads = file[f"{name}.relative_position_bias_table"], channels // HEAD
    y = np.zeros_like(x)
    for top in range(0, x.shape[0], wh):
        for left in range(0, x.shape[1], ww):
            pixels = [(top + i, left + j) for i in range(wh) for j in range(ww)]
            zones = [(zone(i, x.shape[0], wh, sh), zone(j, x.shape[1], ww, sw)) for i, j in pixels]
            for a, (i, j) in enumerate(pixels):
                rows = [(i - m + wh - 1) * (2 * ww - 1) + j - n + ww - 1 for m, n in pixels]
                apart = np.array([-100.0 if zones[a] != other else 0.0 for other in zones])
                for h in range(heads):
                    part = slice(HEAD * h, HEAD * (h + 1))
                    keys, values = (np.array([t[p][part] for p in pixels]) for t in (k, v))
                    scores = keys @ q[i, j, part] / np.sqrt(HEAD) + table[rows, h] + apart
                    weights = np.exp(scores - scores.max())
                    y[i, j, part] = weights @ values / weights.sum()
    y = linear(y, file, f"{name}.proj")[:height, :width]
    return np.roll(y, (sh, sw), (0, 1))


def merge(x, file, name):
    height, width, _ = x.shape
    x = np.pad(x, ((0, height % 2), (0, width % 2), (0, 0)))
    x = np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
    return linear(norm(x, file, f"{name}.norm"), file, f"{name}.reduction")


def logits(image, file):
    """What timm's Swin computes of one image (H, W, C)."""
    file = {name: np.float64(a) for name, a in file.items()}
    height, width = image.shape[0] // 4, image.shape[1] // 4
    patches = np.float64(image).reshape(height, 4, width, 4, 3)
    x = (
        np.einsum("hiwjc,ocij->hwo", patches, file["patch_embed.proj.weight"])
        + file["patch_embed.proj.bias"]
    )
    x = norm(x, file, "patch_embed.norm")
    for stage, depth in enumerate(DEPTHS):
        x = merge(x, file, f"layers.{stage}.downsample") if stage else x
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}."
            x = x + attention(norm(x, file, block + "norm1"), file, block + "attn", i % 2 == 1)
            y = linear(norm(x, file, block + "norm2"), file, block + "mlp.fc1")
            x = x + linear(y * (1 + erf(y / np.sqrt(2))) / 2, file, block + "mlp.fc2")
    return linear(norm(x, file, "norm").mean((0, 1)), file, "head.fc")


def draw_file(grid, classes, seed=0):
    """Random arrays under timm's names."""
    rng = np.random.default_rng(seed)
    shapes = {"patch_embed.proj": (WIDTH, 3, 4, 4), "patch_embed.norm": (WIDTH,)}
    shapes |= {"norm": (8 * WIDTH,), "head.fc": (classes, 8 * WIDTH)}
    tables = {}
    for stage, depth in enumerate(DEPTHS):
        c, window = WIDTH * 2**stage, sides(*(-(-n // 2**stage) for n in grid), False)[0]
        if stage:
            shapes |= {
                f"layers.{stage}.downsample.norm": (2 * c,),
                f"layers.{stage}.downsample.reduction": (c, 2 * c),
            }
        for block in (f"layers.{stage}.blocks.{i}." for i in range(depth)):
            shapes |= {block + "norm1": (c,), block + "norm2": (c,), block + "attn.qkv": (3 * c, c)}
            shapes |= {
                block + "attn.proj": (c, c),
                block + "mlp.fc1": (4 * c, c),
                block + "mlp.fc2": (c, 4 * c),
            }
            rows = np.prod([2 * w - 1 for w in window])
            tables[block + "attn.relative_position_bias_table"] = rng.normal(size=(rows, c // HEAD))
    file = dict(tables)
    for name, shape in shapes.items():
        weight = (
            rng.uniform(0.5, 1.5, shape)
            if len(shape) == 1
            else rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5
        )
        file |= {f"{name}.weight": weight}
        file |= {} if "reduction" in name else {f"{name}.bias": rng.normal(size=shape[:1])}
    return {name: np.float32(a) for name, a in file.items()}


# Grids of 8 (windows of 7, shifted and padded), then 4, 2, 1; and one that halves to odd sides,
# longer than wide.
@pytest.mark.parametrize("height, width", [(32, 32), (60, 20)])
def test_logits_are_timms(tmp_path, height, width):
    file = draw_file((height // 4, width // 4), 5)
    save_file(file, tmp_path / "a.safetensors")
    encoder = make_encoder("swin_tiny", width=WIDTH).clone(depths=DEPTHS)
    classifier = make_classifier(encoder, 5)
    image = np.random.default_rng(1).normal(size=(2, height, width, 3))
    shapes = jax.eval_shape(classifier.init, jax.random.key(0), jnp.float32(image))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    params, stats, _ = load_weights(tmp_path / "a.safetensors", *zeros, "swin_tiny", "weights")
    got = jax.jit(classifier.logits)(params, stats, jnp.float32(image))
    expected = np.stack([logits(i, file) for i in image])
    assert np.max(np.abs(expected)) > 1
    chex.assert_trees_all_close(got, np.float32(expected), atol=1e-4)


# timm's swin_tiny_patch4_window7_224 has 28 288 354, of which 769 000 are the classifier of 1000
# classes; a grid of 56 gives every stage windows of 7.
def test_parameter_count():
    encoder = make_encoder("swin_tiny", width=0)
    params = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), False)
    )["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 28_288_354 - 769_000


@pytest.mark.parametrize(
    "grid, shifted, expected",
    [
        ((8, 8), True, ((7, 7), (3, 3))),
        ((8, 8), False, ((7, 7), (0, 0))),
        ((7, 7), True, ((7, 7), (0, 0))),
        ((4, 9), True, ((4, 7), (0, 3))),
    ],
)
def test_windows_shrink_to_the_grid_and_then_stand_still(grid, shifted, expected):
    assert window_and_shift(grid, 7, shifted) == expected


def test_splitting_into_windows_is_undone_by_joining():
    x = np.arange(2 * 6 * 8 * 3).reshape(2, 6, 8, 3)
    parts = window_partition(x, (3, 4))
    chex.assert_shape(parts, (2, 4, 12, 3))
    np.testing.assert_array_equal(parts[1, 3].reshape(3, 4, 3), x[1, 3:, 4:])
    np.testing.assert_array_equal(window_reverse(parts, (3, 4), (6, 8)), x)


def test_masked_pixels_were_no_neighbours():
    """A window of 2 shifted by 1 on a line of 4: the second holds the last pixel and the first."""
    mask = attention_mask((4, 2), (2, 2), (1, 0))
    chex.assert_shape(mask, (2, 4, 4))
    assert not mask[0].any()
    np.testing.assert_array_equal(mask[1] == 0, np.kron(np.eye(2), np.ones((2, 2))) == 1)


def test_relative_positions_depend_on_the_distance_alone():
    index = relative_index((2, 3))
    place = [(i, j) for i in range(2) for j in range(3)]
    by_distance = {}
    for a, (i, j) in enumerate(place):
        for b, (m, n) in enumerate(place):
            by_distance.setdefault((i - m, j - n), set()).add(int(index[a, b]))
    assert all(len(rows) == 1 for rows in by_distance.values())
    assert set.union(*by_distance.values()) == set(range(3 * 5))
