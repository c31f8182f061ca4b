"""Networks: parameter counts, padding, precision, BatchNorm view by view, presets."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.models import ENCODERS, MLPHead, make_encoder, make_network
from ssl_jax.models.layers import conv


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def images(batch=4, side=32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, side, side, 3)), jnp.float32)


def abstract_init(module, image):
    return jax.eval_shape(lambda key: module.init(key, image, train=True), jax.random.key(0))


# torchvision's resnet34 and resnet50 without their last layer: 21 797 672 - 513 000 and 25 557 032 - 2 049 000.
@pytest.mark.parametrize(
    "name, stem, expected",
    [
        ("resnet18", "cifar", 11_168_832),
        ("resnet18", "imagenet", 11_176_512),
        ("resnet34", "imagenet", 21_284_672),
        ("resnet50", "imagenet", 23_508_032),
    ],
)
def test_encoder_parameter_counts(name, stem, expected):
    encoder = make_encoder(name, width=64, stem=stem)
    assert count(abstract_init(encoder, images())["params"]) == expected


@pytest.mark.parametrize("output_bias, projector, predictor", [(True, 328_320, 131_712), (False, 328_192, 131_584)])
def test_head_parameter_counts(output_bias, projector, predictor):
    head = MLPHead(512, 128, output_bias=output_bias)
    assert count(abstract_init(head, jnp.zeros((2, 512)))["params"]) == projector
    assert count(abstract_init(head, jnp.zeros((2, 128)))["params"]) == predictor


@pytest.mark.parametrize("name, features", [("resnet18", 64), ("resnet34", 64), ("resnet50", 256), ("convnet", 32)])
def test_features_have_their_width_and_type(name, features):
    encoder = make_encoder(name, width=8, precision="bfloat16")
    shapes = jax.eval_shape(
        lambda key, x: encoder.init_with_output(key, x, train=False), jax.random.key(0), images(2, 32)
    )
    chex.assert_shape(shapes[0], (2, features))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def by_hand(image, kernel, stride):
    """3x3 convolution padded by 1 on every side, in float64, pixel by pixel."""
    padded = np.pad(np.float64(image), ((0, 0), (1, 1), (1, 1), (0, 0)))
    side = (image.shape[1] - 1) // stride + 1
    out = np.zeros((len(image), side, side, kernel.shape[-1]))
    for i in range(side):
        for j in range(side):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, np.float64(kernel))
    return out


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_pad_every_side(side, stride):
    x = images(2, side)
    variables = conv(5, 3, stride).init(jax.random.key(0), x)
    expected = by_hand(np.asarray(x), np.asarray(variables["params"]["kernel"]), stride)
    chex.assert_trees_all_close(conv(5, 3, stride).apply(variables, x), np.float32(expected), atol=1e-5)


def test_batch_norm_has_pytorchs_constants():
    """Normalised by this view's biased variance + 1e-5; running statistics keep 0.9 of the old."""
    head = MLPHead(6, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, size=(16, 4)), jnp.float32)
    variables = head.init(jax.random.key(0), x, train=True)
    p = jax.tree.map(np.float64, variables["params"])
    got, new = head.apply(variables, x, train=True, mutable=["batch_stats"])
    h = np.float64(x) @ p["linear1"]["kernel"] + p["linear1"]["bias"]
    normed = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    chex.assert_trees_all_close(got, np.float32(np.maximum(normed, 0) @ p["linear2"]["kernel"]), atol=1e-4)
    chex.assert_trees_all_close(new["batch_stats"]["norm"]["mean"], np.float32(0.1 * h.mean(0)), atol=1e-5)
    chex.assert_trees_all_close(new["batch_stats"]["norm"]["var"], np.float32(0.9 + 0.1 * h.var(0)), atol=1e-4)


def test_two_views_are_normalised_each_by_itself_and_recorded_in_order():
    network = make_network(make_encoder("convnet", width=4), MLPHead(8, 4))
    params, stats = network.init(jax.random.key(0), images())
    view1, view2 = images(seed=1), 5 * images(seed=2)
    z1, after1 = network.train(params, stats, view1)
    z2, after2 = network.train(params, after1, view2)
    _, only2 = network.train(params, stats, view2)
    joint, _ = network.train(params, stats, jnp.concatenate([view1, view2]))
    assert not np.allclose(joint[:4], z1, atol=1e-2), "statistics over both views would be another network"
    chex.assert_trees_all_close(
        after2,
        jax.tree.map(lambda one, two, start: two + 0.9 * (one - start), after1, only2, stats),
        atol=1e-5,
    )
    chex.assert_trees_all_close(network.train(params, after1, view2)[0], z2)


def test_features_use_running_statistics_and_the_encoder_alone():
    network = make_network(make_encoder("convnet", width=4), MLPHead(8, 4))
    params, stats = network.init(jax.random.key(0), images())
    _, stats = network.train(params, stats, images())
    alone = network.features(params, stats, images()[:1])
    chex.assert_trees_all_close(network.features(params, stats, images())[:1], alone, atol=1e-6)
    chex.assert_shape(alone, (1, 16))


def test_presets_have_their_variances():
    """Glorot 2 / (in + out), He by fan-out 2 / (9 out), torch's linear 1 / (3 in); biases zero or U(±1/sqrt(in))."""

    def kernels(preset):
        network = make_network(make_encoder("resnet18", width=32, init=preset), MLPHead(512, 128, preset=preset))
        params, _ = jax.jit(network.init)(jax.random.key(0), images(2))
        return params["encoder"]["stage3_block2"]["conv1"]["kernel"], params["projector"]["linear1"]

    conv_torch, linear_torch = kernels("pytorch")
    conv_glorot, linear_glorot = kernels("glorot")
    assert np.var(conv_torch) == pytest.approx(2 / (9 * 128), rel=0.05)
    assert np.var(conv_glorot) == pytest.approx(2 / (9 * 128 * 2), rel=0.05)
    assert np.var(linear_torch["kernel"]) == pytest.approx(1 / (3 * 256), rel=0.05)
    assert np.var(linear_glorot["kernel"]) == pytest.approx(2 / (256 + 512), rel=0.05)
    assert 0.9 / math.sqrt(256) < np.abs(linear_torch["bias"]).max() <= 1 / math.sqrt(256)
    assert not np.any(linear_glorot["bias"])


@pytest.mark.parametrize("norm, norms", [("group", 1), ("none", 0), ("batch", 1)])
def test_norms_by_name(norm, norms):
    variables = abstract_init(make_encoder("resnet18", width=8, norm=norm), images())
    assert ("batch_stats" in variables) == (norm == "batch")
    assert len([p for p in variables["params"] if "stem_norm" in p]) == norms


def test_every_encoder_is_a_module():
    assert all(isinstance(make_encoder(name, width=8), nn.Module) for name in ENCODERS)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "resnet17"}, "encoder.name: got 'resnet17', did you mean 'resnet18'"),
        ({"stem": "cifra"}, "encoder.stem: got 'cifra', did you mean 'cifar'"),
        ({"norm": "layer"}, "encoder.norm: got 'layer'"),
        ({"init": "he"}, "init: got 'he'"),
        ({"precision": "float16"}, "precision: got 'float16', did you mean 'bfloat16'"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(UserError, match=words):
        make_encoder(**{"name": "resnet18", "width": 8} | options)
