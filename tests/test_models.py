"""Networks: parameter counts, padding, precision, normalisations, initialisations, and the order of
their layers.
"""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.models import (
    ENCODERS,
    MLPHead,
    call_order,
    make_classifier,
    make_encoder,
    make_network,
)
from ssl_jax.models.layers import (
    ACTIVATIONS,
    INITS,
    Norm,
    conv,
    conv_init,
    linear_init,
    standardised,
)
from ssl_jax.models.resnet import BasicBlock


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def images(batch=4, side=32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, side, side, 3)), jnp.float32)


def abstract_init(module, image):
    return jax.eval_shape(lambda key: module.init(key, image, train=True), jax.random.key(0))


# torchvision's resnet34 and resnet50 without their last layer: 21 797 672 - 513 000 and 25 557 032
# - 2 049 000.
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


@pytest.mark.parametrize(
    "output_bias, projector, predictor", [(True, 328_320, 131_712), (False, 328_192, 131_584)]
)
def test_head_parameter_counts(output_bias, projector, predictor):
    head = MLPHead(512, 128, output_bias=output_bias)
    assert count(abstract_init(head, jnp.zeros((2, 512)))["params"]) == projector
    assert count(abstract_init(head, jnp.zeros((2, 128)))["params"]) == predictor


@pytest.mark.parametrize(
    "name, features", [("resnet18", 64), ("resnet34", 64), ("resnet50", 256), ("convnet", 32)]
)
def test_features_have_their_width_and_type(name, features):
    encoder = make_encoder(name, width=8, precision="bfloat16")
    shapes = jax.eval_shape(
        lambda key, x: encoder.init_with_output(key, x, train=False),
        jax.random.key(0),
        images(2, 32),
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
    chex.assert_trees_all_close(
        conv(5, 3, stride).apply(variables, x), np.float32(expected), atol=1e-5
    )


def test_batch_norm_has_pytorchs_constants():
    """Normalised by this view's biased variance + 1e-5; running statistics keep 0.9 of the old."""
    head = MLPHead(6, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, size=(16, 4)), jnp.float32)
    variables = head.init(jax.random.key(0), x, train=True)
    p = jax.tree.map(np.float64, variables["params"])
    got, new = head.apply(variables, x, train=True, mutable=["batch_stats"])
    h = np.float64(x) @ p["linear1"]["kernel"] + p["linear1"]["bias"]
    normed = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    chex.assert_trees_all_close(
        got, np.float32(np.maximum(normed, 0) @ p["linear2"]["kernel"]), atol=1e-4
    )
    chex.assert_trees_all_close(
        new["batch_stats"]["norm"]["mean"], np.float32(0.1 * h.mean(0)), atol=1e-5
    )
    chex.assert_trees_all_close(
        new["batch_stats"]["norm"]["var"], np.float32(0.9 + 0.1 * h.var(0)), atol=1e-4
    )


def test_two_views_are_normalised_each_by_itself_and_recorded_in_order():
    network = make_network(make_encoder("convnet", width=4), MLPHead(8, 4))
    params, stats = network.init(jax.random.key(0), images())
    view1, view2 = images(seed=1), 5 * images(seed=2)
    z1, after1 = network.train(params, stats, view1)
    z2, after2 = network.train(params, after1, view2)
    _, only2 = network.train(params, stats, view2)
    joint, _ = network.train(params, stats, jnp.concatenate([view1, view2]))
    assert not np.allclose(joint[:4], z1, atol=1e-2), (
        "statistics over both views would be another network"
    )
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
    """Glorot 2 / (in + out), He by fan-out 2 / (9 out), torch's linear 1 / (3 in); biases zero or
    U(±1/sqrt(in)).
    """

    def kernels(preset):
        network = make_network(
            make_encoder("resnet18", width=32, init=preset), MLPHead(512, 128, preset=preset)
        )
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


@pytest.mark.parametrize("kind, groups", [("layer", 1), ("group", 4), ("instance", 12)])
def test_norms_over_one_example(kind, groups):
    x = jnp.concatenate([(i + 1.0) * images(3, 5, seed=i) + i for i in range(4)], axis=-1)
    norm = Norm(kind)
    variables = norm.init(jax.random.key(0), x, True)
    got = norm.apply(variables, x, True)
    parts = np.float64(x).reshape(3, 25, groups, -1)
    centred = parts - parts.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    chex.assert_trees_all_close(got, np.float32(expected.reshape(x.shape)), atol=1e-4)
    assert list(variables["params"]) == [kind] and "batch_stats" not in variables


def test_instance_norm_refuses_a_single_pixel():
    with pytest.raises(UserError, match="encoder.norm: got 'instance'"):
        abstract_init(make_encoder("mlp", width=8, norm="instance"), images(2, 4))


def test_activations_by_definition():
    x = np.linspace(-4, 4, 41)
    expected = {
        "sigmoid": 1 / (1 + np.exp(-x)),
        "tanh": np.tanh(x),
        "relu": np.maximum(x, 0),
        "leaky_relu": np.where(x > 0, x, 0.01 * x),
        "gelu": x * np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x]),
    }
    got = {name: activation(jnp.float32(x)) for name, activation in ACTIVATIONS.items()}
    chex.assert_trees_all_close(got, jax.tree.map(np.float32, expected), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 32, 64), (288, 64)])
def test_initialisations_by_definition(shape):
    """288 inputs: standard deviations 0.01 and sqrt(2 / 288); 64 orthonormal columns."""
    init = conv_init if len(shape) == 4 else linear_init
    draw = {name: np.asarray(init(name)(jax.random.key(0), shape)) for name in INITS}
    assert np.std(draw["gaussian"]) == pytest.approx(0.01, rel=0.03)
    assert np.std(draw["he"]) == pytest.approx(math.sqrt(2 / 288), rel=0.03)
    columns = draw["orthogonal"].reshape(288, 64)
    chex.assert_trees_all_close(columns.T @ columns, np.eye(64, dtype=np.float32), atol=1e-5)
    assert not any(
        np.any(linear_init(name, bias_fan_in=288)(jax.random.key(0), (64,))) for name in INITS[1:]
    )


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (7, 5)])
def test_standardised_kernels(shape):
    kernel = np.random.default_rng(0).normal(1.0, 2.0, size=shape)
    flat = kernel.reshape(-1, 5)
    expected = ((flat - flat.mean(0)) / flat.std(0)).reshape(shape)
    chex.assert_trees_all_close(standardised(jnp.float32(kernel)), np.float32(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["convnet_digits", "mlp"])
def test_a_standardised_network_ignores_scale_and_mean_of_its_kernels(name):
    encoder = make_encoder(name, width=4, norm="none", standardise=True)
    x = images(2, 8)
    params = encoder.init(jax.random.key(0), x, False)["params"]
    other = jax.tree.map(lambda p: 3 * p + 0.5 if p.ndim > 1 else p, params)
    assert any(p.ndim > 1 for p in jax.tree.leaves(params))
    first, second = (encoder.apply({"params": p}, x, False) for p in (params, other))
    chex.assert_trees_all_close(first, second, rtol=1e-3)


def test_a_plain_network_has_no_shortcuts():
    """Where the last layer of a block gives zero, nothing is left of its input."""
    x = jnp.abs(images(2, 4))
    for residual in (True, False):
        encoder = make_encoder("resnet18", width=3, norm="none", residual=residual)
        block = BasicBlock(3, 1, residual, encoder.style)
        params = block.init(jax.random.key(0), x, False)["params"]
        params["conv2"] = jax.tree.map(jnp.zeros_like, params["conv2"])
        chex.assert_trees_all_close(
            block.apply({"params": params}, x, False), x if residual else 0 * x
        )
        names = str(jax.tree.structure(abstract_init(encoder, images(2))["params"]))
        assert ("shortcut" in names) == residual


def test_more_layers_in_a_row():
    shallow, deep = (
        abstract_init(make_encoder("convnet", width=4, depth=d), images())["params"] for d in (0, 6)
    )
    assert deep.keys() - shallow.keys() == {"conv5", "conv6", "norm5", "norm6"}
    assert [deep[f"conv{i}"]["kernel"].shape[-1] for i in range(1, 7)] == [4, 8, 16, 16, 16, 16]


def test_mlp_by_hand():
    encoder = make_encoder("mlp", width=6, depth=3, activation="tanh", norm="layer")
    x = images(2, 4)
    variables = encoder.init(jax.random.key(0), x, True)
    h = np.float64(x).reshape(2, -1)
    for i in (1, 2, 3):
        p = jax.tree.map(np.float64, variables["params"][f"linear{i}"])
        h = h @ p["kernel"] + p["bias"]
        h = h - h.mean(1, keepdims=True)
        h = np.tanh(h / np.sqrt((h**2).mean(1, keepdims=True) + 1e-5))
    chex.assert_trees_all_close(encoder.apply(variables, x, False), np.float32(h), atol=1e-5)


def test_dropout_of_the_mlp_is_inverted():
    encoder = make_encoder("mlp", width=2000, depth=1, dropout=0.25)
    x = images(1, 4)
    variables = encoder.init(jax.random.key(0), x, True)
    kept = encoder.apply(variables, x, False)
    dropped = encoder.apply(variables, x, True, rngs={"dropout": jax.random.key(1)})
    on = np.asarray(kept) > 0
    assert np.mean(np.asarray(dropped)[on] == 0) == pytest.approx(0.25, abs=0.05)
    survivors = np.asarray(dropped) != 0
    chex.assert_trees_all_close(dropped[survivors], kept[survivors] / 0.75, rtol=1e-5)


def weight_layers(order):
    """Convolutions and linear layers; a shortcut has the number of its block's last convolution."""
    return [path for path in order if "norm" not in path and "shortcut" not in path]


@pytest.mark.parametrize(
    "name, expected", [("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("mlp", 3)]
)
def test_layers_are_counted_as_in_the_name(name, expected):
    classifier = make_classifier(make_encoder(name, width=4), 10)
    layers = weight_layers(call_order(classifier.init, images(2)))
    assert len(layers) == expected and layers[-1] == "head"


def test_call_order_is_that_of_the_forward_pass():
    network = make_network(make_encoder("convnet_digits", width=4), MLPHead(8, 4))
    convs = [path for i in (1, 2, 3) for path in (f"encoder/conv{i}", f"encoder/norm{i}/batch")]
    expected = (*convs, "projector/linear1", "projector/linear2")
    for _ in range(2):  # JAX remembers what it has traced
        assert call_order(network.init, images(2, 8)) == expected


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_calls_all_that_it_owns_and_keeps_float32_outside(name):
    depth = 0 if "resnet" in name else 1 if "_" in name and name != "convnet_digits" else 4
    classifier = make_classifier(
        make_encoder(name, width=32, depth=depth, precision="bfloat16"), 10
    )
    order = call_order(classifier.init, images(2))  # asserts it of all parameters
    assert order[0].startswith("encoder/") and order[-1] == "head"
    variables = jax.eval_shape(classifier.init, jax.random.key(0), images(2))
    logits = jax.eval_shape(classifier.logits, *variables, images(2))
    assert {a.dtype for a in jax.tree.leaves((variables, logits))} == {jnp.dtype("float32")}
    chex.assert_shape(logits, (2, 10))
    assert isinstance(make_encoder(name, width=0), nn.Module)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "resnet17"}, "encoder.name: got 'resnet17', did you mean 'resnet18'"),
        ({"stem": "cifra"}, "encoder.stem: got 'cifra', did you mean 'cifar'"),
        ({"norm": "bach"}, "encoder.norm: got 'bach', did you mean 'batch'"),
        ({"activation": "rleu"}, "encoder.activation: got 'rleu', did you mean 'relu'"),
        ({"init": "her"}, "init: got 'her', did you mean 'he'"),
        ({"precision": "float16"}, "precision: got 'float16', did you mean 'bfloat16'"),
        ({"depth": 3}, "encoder.depth: got 3, resnet18 takes 0"),
        ({"dropout": 0.1}, "encoder.dropout: got 0.1, resnet18 takes 0.0"),
        ({"width": -1}, "encoder.width: got -1, takes"),
        ({"name": "mlp", "dropout": 1.0}, r"encoder.dropout: got 1.0, takes a number in \[0, 1\)"),
        ({"name": "mlp", "residual": False}, "encoder.residual: got False, mlp takes True"),
        ({"name": "convnet", "depth": 3}, "encoder.depth: got 3, takes 0 or at least 4"),
        (
            {"name": "convnet", "stem": "imagenet"},
            "encoder.stem: got 'imagenet', convnet takes cifar",
        ),
        (
            {"name": "convnext_tiny", "norm": "batch"},
            "encoder.norm: got 'batch', convnext_tiny takes auto",
        ),
        (
            {"name": "swin_tiny", "activation": "relu"},
            "encoder.activation: got 'relu', swin_tiny takes auto",
        ),
        (
            {"name": "swin_tiny", "standardise": True},
            "encoder.standardise: got True, swin_tiny takes False",
        ),
        ({"name": "swin_tiny", "width": 40}, "encoder.width: got 40, takes a multiple of 32"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(UserError, match=words):
        make_encoder(**{"name": "resnet18", "width": 8} | options)


def test_pretraining_refuses_dropout():
    with pytest.raises(UserError, match="encoder.dropout: got 0.5, pretraining takes 0"):
        make_network(make_encoder("mlp", width=8, dropout=0.5), MLPHead(8, 4))


# --- Heads without statistics of the batch --------------------------------------------------------


def head64(params, x, groups, standardise):
    """Linear, norm of each example over groups of channels, ReLU, linear: NumPy in float64."""
    first, second = (np.float64(params[name]["kernel"]) for name in ("linear1", "linear2"))
    if standardise:
        first, second = ((k - k.mean(0)) / k.std(0) for k in (first, second))
    h = x @ first + np.float64(params["linear1"]["bias"])
    if groups:
        parts = h.reshape(len(h), groups, -1)
        centred = parts - parts.mean(2, keepdims=True)
        h = (centred / np.sqrt(parts.var(2, keepdims=True) + 1e-5)).reshape(h.shape)
    return np.maximum(h, 0) @ second


@pytest.mark.parametrize("norm, groups", [("group", 4), ("layer", 1), ("none", 0)])
@pytest.mark.parametrize("standardise", [False, True])
def test_a_head_without_batch_statistics_is_its_formula(norm, groups, standardise):
    """gcd(32, 12) = 4 groups. One example by itself gives what it gives among others."""
    head = MLPHead(12, 5, norm=norm, standardise=standardise)
    x = np.random.default_rng(0).normal(size=(7, 6))
    variables = head.init(jax.random.key(0), jnp.float32(x), train=True)
    assert set(variables) == {"params"} and set(variables["params"]) == {"linear1", "linear2"}
    found = head.apply(variables, jnp.float32(x), train=True)
    expected = head64(variables["params"], x, groups, standardise)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    for train in (True, False):
        alone = head.apply(variables, jnp.float32(x[2:3]), train=train)
        np.testing.assert_allclose(alone, found[2:3], atol=1e-5)


def test_an_unknown_norm_of_a_head_is_named():
    with pytest.raises(UserError, match="projector.norm: got 'instance'"):
        MLPHead(4, 2, norm="instance").init(jax.random.key(0), jnp.zeros((2, 3)), train=True)
