"""What is known of the four kinds of weight decay beyond their one-step formulas: the identities
between them.
"""

import doctest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.models import call_order, make_classifier, make_encoder
from ssl_jax.optim import by_group, decay, make_optimizer
from ssl_jax.optim.decay import check_mask, decay_rates, layer_index, layer_rates

# of the quadratic H/2 (x - CENTRE)² whose fixed points are known
ETA, H, D, CENTRE = 0.1, 0.7, 0.05, 2.0
LAYERS = {"conv1": {"kernel": (2, 2), "bias": (2,)}, "conv2": {"kernel": (2, 2)}}


def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.normal(size=s), LAYERS, is_leaf=lambda s: isinstance(s, tuple)
    )


def run(optimizer, start, steps, gradient=None):
    """The parameters after each of the steps; gradient(params), by default of a noisy quadratic. In
    float64.
    """
    rng = np.random.default_rng(5)
    noise = jax.tree.map(lambda leaf: rng.normal(size=(steps, *np.shape(leaf))), start)

    def noisy(params, noise):
        return jax.tree.map(lambda p, n: H * (p - 1) + n, params, noise)

    def step(carry, noise):
        params, state = carry
        params = optimizer.pre(params, state)
        updates, state = optimizer.update(
            gradient(params) if gradient else noisy(params, noise), state, params
        )
        carry = optax.apply_updates(params, updates), state
        return carry, carry[0]

    with jax.enable_x64(True):
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start)
        return jax.device_get(
            jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), noise)[1])()
        )


@pytest.mark.parametrize("name", ["momentum", "adam", "lookahead"])
def test_real_time_decay_is_pre_decay_seen_at_another_point_of_the_step(name):
    """If RWD starts at D theta_0, then RWD_t = D PWD_t for all t: same gradients, same state of the
    optimizer.
    """
    options = {"weight_decay": D, "decay_scale": "literal", "layerwise": "mean"}
    keep = jax.tree.map(lambda d: 1 - d, layer_rates(draw(0), D))
    pre = run(make_optimizer(name, ETA, decay="pre", **options), draw(0), 1000)
    shrunk = jax.tree.map(np.multiply, draw(0), keep)
    real = run(make_optimizer(name, ETA, decay="realtime", **options), shrunk, 1000)
    chex.assert_trees_all_close(real, jax.tree.map(np.multiply, pre, keep), rtol=1e-10, atol=1e-12)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(real)) > 0.5


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_real_time_decay_is_ordinary_decay_with_a_smaller_rate_in_every_layer(name):
    """RWD(eta) is WD((1 - d) eta), exactly, as long as the update is eta times what does not depend
    on eta.
    """
    options = {"weight_decay": D, "decay_scale": "literal"}
    real = make_optimizer(name, ETA, decay="realtime", layerwise="mean", **options)
    shares = {"conv1": 2 * D / 3, "conv2": 4 * D / 3}
    ordinary = {
        layer: make_optimizer(
            name, (1 - d) * ETA, decay="decoupled", weight_decay=d, decay_scale="literal"
        )
        for layer, d in shares.items()
    }
    grouped = by_group(
        ordinary, lambda params: {layer: dict.fromkeys(params[layer], layer) for layer in params}
    )
    chex.assert_trees_all_close(
        run(real, draw(0), 50), run(grouped, draw(0), 50), rtol=1e-10, atol=1e-12
    )


def test_fixed_points_of_a_quadratic():
    def gradient(x):
        return H * (x - CENTRE)

    def rest(kind):
        return make_optimizer("sgd", ETA, weight_decay=D, decay_scale="literal", decay=kind)

    found = {
        kind: float(run(rest(kind), 0.3, 600, gradient)[-1])
        for kind in ("decoupled", "realtime", "pre")
    }
    real = (1 - D) * ETA * H * CENTRE / (D + (1 - D) * ETA * H)
    known = {"decoupled": ETA * H * CENTRE / (D + ETA * H), "realtime": real, "pre": real / (1 - D)}
    assert found == pytest.approx(known, rel=1e-12)
    assert found == pytest.approx(
        {"decoupled": 1.16667, "realtime": 1.14163, "pre": 1.20172}, abs=5e-6
    )


@pytest.mark.parametrize("name, same", [("sgd", True), ("momentum", False), ("adam", False)])
def test_l2_is_weight_decay_for_plain_sgd_alone(name, same):
    coupled, decoupled = (
        run(make_optimizer(name, ETA, weight_decay=0.5, decay=kind), draw(0), 20)
        for kind in ("coupled", "decoupled")
    )
    gaps = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), coupled, decoupled))
    assert max(gaps) < 1e-12 if same else min(gaps) > 1e-2


def test_layerwise_pre_decay_with_equal_rates_is_pre_decay():
    params = draw(0)
    equal = jax.tree.map(lambda _: D, params)
    chex.assert_trees_all_equal(decay.pre_decay(params, equal), decay.pre_decay(params, D))
    one_layer = {"conv1": params["conv1"]}
    layered, plain = (
        make_optimizer("adam", ETA, weight_decay=0.5, decay="pre", layerwise=r)
        for r in ("mean", "")
    )
    chex.assert_trees_all_equal(run(layered, one_layer, 10), run(plain, one_layer, 10))


# --- The transformations alone, in an Optax program -----------------------------------------------


@pytest.mark.parametrize("module", [decay])
def test_the_examples_in_the_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "kind, first, end",
    [
        ("coupled", [decay.coupled_decay], []),
        ("decoupled", [], [decay.decoupled_decay]),
        ("realtime", [], [decay.real_time_decay]),
    ],
)
def test_a_chain_of_optax_takes_them(kind, first, end):
    params, grads = jax.tree.map(jnp.float32, (draw(0), draw(1)))
    rates = layer_rates(params, D)
    chain = optax.chain(*[f(rates) for f in first], optax.adam(ETA), *[f(rates) for f in end])
    ours = make_optimizer(
        "adam", ETA, weight_decay=D, decay=kind, decay_scale="literal", layerwise="mean"
    )
    updates, _ = chain.update(grads, chain.init(params), params)
    chex.assert_trees_all_close(
        updates, ours.update(grads, ours.init(params), params)[0], rtol=1e-6, atol=1e-8
    )


def test_inject_hyperparams_schedules_them():
    scheduled = optax.inject_hyperparams(decay.decoupled_decay)(
        rate=lambda count: 0.5 / (1 + count)
    )
    theta, state = jnp.float32(4.0), scheduled.init(jnp.float32(4.0))
    for expected in (2.0, 1.0):
        updates, state = scheduled.update(jnp.float32(0), state, theta)
        assert -float(updates) == expected


def test_they_say_that_they_need_the_parameters():
    with pytest.raises(ValueError, match="needs the parameters"):
        decay.decoupled_decay(D).update(1.0, optax.EmptyState())


# --- Layers ---------------------------------------------------------------------------------------


def tree(**modules):
    """Modules by name: k owns a kernel, b a bias, s a scale."""
    arrays = {
        "k": ("kernel", np.ones((2, 2))),
        "b": ("bias", np.ones(2)),
        "s": ("scale", np.ones(2)),
    }
    return {name: dict(arrays[letter] for letter in letters) for name, letters in modules.items()}


@pytest.mark.parametrize("n", [2, 3, 18])
@pytest.mark.parametrize(
    "rule, mean, largest",
    [
        ("i/n", lambda n: (n + 1) / (2 * n), lambda n: 1),
        ("mean", lambda n: 1, lambda n: 2 * n / (n + 1)),
    ]
    + [("max", lambda n: 1, lambda n: 2)],
)
def test_means_and_largest_of_the_rules(n, rule, mean, largest):
    rates = jax.tree.leaves(
        layer_rates(tree(**{f"conv{i}": "k" for i in range(1, n + 1)}), 0.3, rule)
    )
    assert len(rates) == n and all(isinstance(rate, float) for rate in rates)
    assert np.mean(rates) == pytest.approx(0.3 * mean(n)) and max(rates) == pytest.approx(
        0.3 * largest(n)
    )
    assert (min(rates) == 0) == (rule == "max")


@pytest.mark.parametrize("rule", ["i/n", "mean", "max"])
def test_a_single_layer_keeps_the_rate(rule):
    assert layer_rates(tree(only="kb"), 0.3, rule) == {"only": {"kernel": 0.3, "bias": 0.3}}


def test_an_unknown_rule_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="optimizer.layerwise: got 'men', did you mean 'mean'"):
        layer_rates(tree(only="k"), 0.3, "men")


def test_index_by_name():
    params = tree(
        head="kb",
        norm2="s",
        conv10="k",
        conv2="k",
        stem_norm="s",
        shortcut_conv="k",
        norm1="sb",
        conv1="k",
    )
    params |= tree(stem="k", shortcut_norm="s")
    index, n = layer_index(params)
    found = {module: set(leaves.values()) for module, leaves in index.items()}
    assert n == 5 and found == {
        **{"stem": {1}, "conv1": {2}, "norm1": {2}, "stem_norm": {1}, "conv2": {3}, "norm2": {3}},
        **{"conv10": {4}, "shortcut_conv": {4}, "shortcut_norm": {4}, "head": {5}},
    }


def test_index_of_encoder_projector_and_predictor_by_name():
    params = {
        "predictor": tree(linear1="k"),
        "projector": tree(linear1="kb"),
        "encoder": tree(norm="s", conv1="k"),
    }
    index, n = layer_index(params)
    assert n == 3 and index["encoder"] == {"norm": {"scale": 1}, "conv1": {"kernel": 1}}
    assert (
        index["projector"]["linear1"] == {"kernel": 2, "bias": 2}
        and index["predictor"]["linear1"]["kernel"] == 3
    )


def test_index_of_other_trees():
    w, b = np.ones((2, 2)), np.ones(2)
    assert layer_index([(w, b), (w, b)]) == ([(1, 1), (2, 2)], 2)
    assert layer_index({"layers": [w, w], "out": {"kernel": w}}) == (
        {"layers": [1, 2], "out": {"kernel": 3}},
        3,
    )
    assert layer_index([w] * 12) == (list(range(1, 13)), 12)
    assert layer_index([b, b]) == ([1, 2], 2)
    assert layer_index(w) == (1, 1) and layer_index(b) == (1, 1)
    assert layer_index({"a": w, "b": w}) == ({"a": 1, "b": 2}, 2)
    assert layer_index({"kernel": w, "bias": b}) == ({"kernel": 1, "bias": 1}, 1)
    assert layer_index({"w": w, "table": w, "w2": w})[1] == 2


def test_index_of_flat_keys_is_that_of_nested_ones():
    nested = {
        "encoder": {
            "conv1": {"kernel": np.ones((2, 2))},
            "conv2": {"kernel": np.ones((2, 2)), "bias": 1.0},
        }
    }
    flat = {
        f"encoder/{m}/{leaf}": v
        for m, leaves in nested["encoder"].items()
        for leaf, v in leaves.items()
    }
    index, n = layer_index(nested)
    assert layer_index(flat) == (
        {"encoder/conv1/kernel": 1, "encoder/conv2/kernel": 2, "encoder/conv2/bias": 2},
        n,
    )
    assert index["encoder"]["conv2"] == {"kernel": 2, "bias": 2}


def test_index_under_jit_is_the_eager_one():
    """JAX sorts the keys of dicts on their way through jit."""
    params, seen = tree(conv2="k", head="k", conv1="k", conv10="k"), []

    @jax.jit
    def look(params):
        seen.append((list(params), layer_index(params)))
        return 0

    look(params)
    assert seen[0][0] != list(params) and seen[0][1] == layer_index(params)


def test_an_order_decides_against_the_names():
    order = ("b", "norm_b", "shortcut_a", "a", "norm_a")
    params = tree(a="kb", b="k", norm_a="s", norm_b="s", shortcut_a="k")
    index, n = layer_index(params, order)
    assert n == 2 and index == {
        **{"b": {"kernel": 1}, "norm_b": {"scale": 1}, "shortcut_a": {"kernel": 1}},
        **{"a": {"kernel": 2, "bias": 2}, "norm_a": {"scale": 2}},
    }
    with pytest.raises(ValueError, match="does not hold norm_a"):
        layer_index(params, order[:-1])


@pytest.mark.parametrize(
    "name, n", [("resnet18", 18), ("convnext_tiny", 4 + 18 * 3 + 1), ("swin_tiny", 4 + 12 * 4 + 1)]
)
def test_layers_of_the_networks_whole_and_in_groups(name, n):
    """Stem, blocks' convolutions or linear layers, downsampling and classifier; the same in a part
    as in the whole.
    """
    classifier = make_classifier(make_encoder(name, width=32), 10, init="pytorch")
    image = jnp.zeros((2, 32, 32, 3))
    order = call_order(classifier.init, image)
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0), image)
    index, found = layer_index(params, order)
    assert found == n and set(jax.tree.leaves(index)) == set(range(1, n + 1))
    for group in params:
        assert layer_index({group: params[group]}, order) == ({group: index[group]}, n)
    if name == "resnet18":
        block = index["encoder"]["stage2_block1"]
        assert block["conv2"] == block["shortcut_conv"] == {"kernel": 7} and block["conv1"] == {
            "kernel": 6
        }
        assert layer_index(params) == (index, n)  # the names alone tell it


# --- Masks ----------------------------------------------------------------------------------------


def test_rates_under_a_mask():
    params = tree(conv1="kb", conv2="kb")
    rates = decay_rates(params, 0.3, layerwise="i/n", exclude="conv2/bias")
    assert rates == {"conv1": {"kernel": 0.15, "bias": 0.15}, "conv2": {"kernel": 0.3, "bias": 0.0}}


@pytest.mark.parametrize("kind", ["coupled", "decoupled", "realtime", "pre"])
def test_an_excluded_parameter_is_left_alone(kind):
    params, zero = draw(0), jax.tree.map(jnp.zeros_like, draw(0))
    optimizer = make_optimizer("sgd", 1.0, weight_decay=0.5, decay=kind, exclude="bias")
    state = optimizer.init(params)
    phi = optimizer.pre(params, state)
    after = optax.apply_updates(phi, optimizer.update(zero, state, phi)[0])
    chex.assert_trees_all_equal(after["conv1"]["bias"], jnp.asarray(params["conv1"]["bias"]))
    chex.assert_trees_all_close(
        after["conv2"]["kernel"], jnp.float32(params["conv2"]["kernel"] / 2)
    )


def test_a_mask_that_matches_nothing_is_named():
    check_mask(tree(conv1="kb"), "bias$")
    check_mask(tree(conv1="kb"), "")
    with pytest.raises(
        ValueError, match=r"optimizer.exclude: got 'conv2', .* none of the 2 .*conv1/bias"
    ):
        check_mask(tree(conv1="kb"), "conv2")
