"""ConvNeXt against NumPy in float64, from arrays that are named and laid out as timm has them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from safetensors.numpy import save_file
from scipy.special import erf

from ssl_jax.errors import UserError
from ssl_jax.models import load_weights, make_classifier, make_encoder
from ssl_jax.models.cpu.convolution import (
    DENSE_PIXELS,
    LAYOUT,
    convolve_depthwise,
    convolve_patches,
)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def norm(x, file, name, eps, axis):
    """Over one axis, with weight and bias along it."""
    shape = [1] * x.ndim
    shape[axis] = -1
    centred = x - x.mean(axis, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(axis, keepdims=True) + eps)
    return x * file[f"{name}.weight"].reshape(shape) + file[f"{name}.bias"].reshape(shape)


def patchwise(x, file, name):
    """Convolution of (B, C, H, W) whose stride is its kernel's side."""
    weight = file[f"{name}.weight"]
    k = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::k, ::k]
    return np.einsum("bchwij,ocij->bohw", windows, weight) + file[f"{name}.bias"][:, None, None]


def channelwise(x, file, name):
    """7x7 convolution of each channel, padded by 3."""
    padded = np.pad(x, ((0, 0), (0, 0), (3, 3), (3, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (2, 3))
    return (
        np.einsum("bchwij,cij->bchw", windows, file[f"{name}.weight"][:, 0])
        + file[f"{name}.bias"][:, None, None]
    )


def logits(image, file, depths):
    """What timm's ConvNeXt computes of (B, H, W, C), channels first inside."""
    file = {name: np.float64(a) for name, a in file.items()}
    x = norm(
        patchwise(np.float64(image).transpose(0, 3, 1, 2), file, "stem.0"), file, "stem.1", 1e-6, 1
    )
    for stage, depth in enumerate(depths):
        if stage:
            x = norm(x, file, f"stages.{stage}.downsample.0", 1e-6, 1)
            x = patchwise(x, file, f"stages.{stage}.downsample.1")
        for block in (f"stages.{stage}.blocks.{i}." for i in range(depth)):
            y = norm(channelwise(x, file, block + "conv_dw"), file, block + "norm", 1e-6, 1)
            y = gelu(
                np.einsum("bchw,dc->bdhw", y, file[block + "mlp.fc1.weight"])
                + file[block + "mlp.fc1.bias"][:, None, None]
            )
            y = (
                np.einsum("bchw,dc->bdhw", y, file[block + "mlp.fc2.weight"])
                + file[block + "mlp.fc2.bias"][:, None, None]
            )
            x = x + file[block + "gamma"][:, None, None] * y
    x = norm(x.mean((2, 3)), file, "head.norm", 1e-6, 1)
    return x @ file["head.fc.weight"].T + file["head.fc.bias"]


def draw_file(depths, width, classes, seed=0):
    """Random arrays under timm's names."""
    rng = np.random.default_rng(seed)
    shapes = {"stem.0": (width, 3, 4, 4), "stem.1": (width,), "head.norm": (8 * width,)}
    shapes["head.fc"] = (classes, 8 * width)
    for stage, depth in enumerate(depths):
        c = width * 2**stage
        if stage:
            shapes[f"stages.{stage}.downsample.0"] = (c // 2,)
            shapes[f"stages.{stage}.downsample.1"] = (c, c // 2, 2, 2)
        for block in (f"stages.{stage}.blocks.{i}." for i in range(depth)):
            shapes |= {block + "conv_dw": (c, 1, 7, 7), block + "norm": (c,), block + "gamma": (c,)}
            shapes |= {block + "mlp.fc1": (4 * c, c), block + "mlp.fc2": (c, 4 * c)}
    file = {}
    for name, shape in shapes.items():
        if name.endswith("gamma"):
            file[name] = rng.uniform(0.2, 1.0, shape)
        elif len(shape) == 1:
            file |= {
                f"{name}.weight": rng.uniform(0.5, 1.5, shape),
                f"{name}.bias": rng.normal(size=shape),
            }
        else:
            scale = 1 / np.sqrt(np.prod(shape[1:]))
            file |= {
                f"{name}.weight": scale * rng.normal(size=shape),
                f"{name}.bias": rng.normal(size=shape[:1]),
            }
    return {name: np.float32(a) for name, a in file.items()}


def fresh(classifier, side):
    """Zeros where parameters would be: nothing here is to depend on them."""
    shapes = jax.eval_shape(classifier.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


@pytest.mark.parametrize("side", [32, 45])
def test_logits_are_timms(tmp_path, side):
    file = draw_file((1, 1, 3, 1), 4, 5)
    save_file(file, tmp_path / "a.safetensors")
    classifier = make_classifier(make_encoder("convnext_tiny", width=4, depth=1), 5)
    params, stats, _ = load_weights(
        tmp_path / "a.safetensors", *fresh(classifier, side), "convnext_tiny", "weights"
    )
    image = np.random.default_rng(1).normal(size=(3, side, side, 3))
    got = jax.jit(classifier.logits)(params, stats, jnp.float32(image))
    expected = logits(image, file, (1, 1, 3, 1))
    assert np.max(np.abs(expected)) > 1
    chex.assert_trees_all_close(got, np.float32(expected), atol=1e-4)


# Parameters of timm's models without classifier: 28 589 128, 50 223 688 and 88 591 464 less 1000
# classes.
@pytest.mark.parametrize(
    "name, expected",
    [("tiny", 27_820_128), ("small", 49_454_688), ("base", 88_591_464 - 1_025_000)],
)
def test_parameter_counts(name, expected):
    encoder = make_encoder(f"convnext_{name}", width=0)
    params = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)
    )["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == expected


def test_small_images_are_refused():
    with pytest.raises(UserError, match="data.image_size: got 8, this encoder takes at least 32"):
        fresh(make_classifier(make_encoder("convnext_tiny", width=4), 5), 8)


PAD = ((0, 0), (3, 3), (3, 3), (0, 0))


def depthwise(x, kernel):
    pad = (kernel.shape[0] // 2,) * 2
    return convolve_depthwise(x, kernel, (1, 1), (pad, pad), dimension_numbers=LAYOUT)


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.float32(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize("height, width", [(8, 8), (3, 5), (1, 1), (11, 12)])
def test_depthwise_value_and_gradients(height, width):
    x, kernel, gradient = draw((2, height, width, 4), (7, 7, 1, 4), (2, height, width, 4))

    got = jax.jit(lambda *a: (depthwise(*a[:2]), *jax.vjp(depthwise, *a[:2])[1](a[2])))(
        x, kernel, gradient
    )

    def windows(a):
        return np.lib.stride_tricks.sliding_window_view(np.pad(np.float64(a), PAD), (7, 7), (1, 2))

    k = np.float64(kernel)[:, :, 0]
    expected = (
        np.einsum("bhwcij,ijc->bhwc", windows(x), k),
        np.einsum("bhwcij,ijc->bhwc", windows(gradient), k[::-1, ::-1]),
        np.einsum("bhwcij,bhwc->ijc", windows(x), np.float64(gradient))[:, :, None],
    )
    chex.assert_trees_all_close(got, jax.tree.map(np.float32, expected), atol=1e-4)


def test_gradients_by_finite_differences():
    x, kernel = draw((2, 3, 4, 2), (7, 7, 1, 2))
    check_grads(jax.jit(depthwise), (x, kernel), order=1, modes=["rev"], rtol=1e-2)


def test_depthwise_form_is_chosen_as_meant():
    """Matrix products on the CPU for few pixels; elsewhere, and for many, what XLA has."""

    def lowered(side, platform, dtype=jnp.float32):
        x, kernel = (a.astype(dtype) for a in draw((2, side, side, 4), (7, 7, 1, 4)))
        return (
            jax.jit(jax.grad(lambda x, k: jnp.sum(depthwise(x, k)), (0, 1)))
            .trace(x, kernel)
            .lower(lowering_platforms=(platform,))
            .as_text()
        )

    assert 8 * 8 <= DENSE_PIXELS < 16 * 16
    assert "stablehlo.convolution" not in lowered(8, "cpu")
    for side, platform, dtype in [
        (16, "cpu", jnp.float32),
        (8, "cuda", jnp.float32),
        (8, "cpu", jnp.bfloat16),
    ]:
        text = lowered(side, platform, dtype)
        assert "stablehlo.convolution" in text and "dot_general" not in text


@pytest.mark.parametrize("size, side", [(4, 8), (2, 5)])
def test_patches_value_and_gradients(size, side):
    x, kernel, gradient = draw(
        (2, side, side, 3), (size, size, 3, 5), (2, side // size, side // size, 5)
    )
    sizes = ((size, size), ((0, 0), (0, 0)))

    def both(convolution):
        value, pull = jax.vjp(
            lambda x, k: convolution(x, k, *sizes, dimension_numbers=LAYOUT), x, kernel
        )
        return value, pull(gradient)

    chex.assert_trees_all_close(both(convolve_patches), both(lax.conv_general_dilated), atol=1e-4)
