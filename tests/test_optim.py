"""What surrounds an optimizer's equations: momentum's forms, the scale of the rate, groups,
clipping, mistakes.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.errors import UserError
from ssl_jax.optim import DECAYS, assign_groups, by_group, clipped, decayed, make_optimizer, rescale
from ssl_jax.optim.directions import DIRECTIONS, options_of

PARAMS = {
    "encoder": {"kernel": jnp.arange(6.0).reshape(2, 3) / 5},
    "linear1": {"bias": jnp.array([0.5, -1.0, 2.0])},
}
PATTERNS = {"a": "encoder/", "b": "linear1/"}


def grads_at(step, params=PARAMS):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)


def steps(optimizer, count, params=PARAMS, change=lambda step, state: state):
    """The parameters after `count` steps, each with a gradient of its own; change(step, state)
    before each.
    """
    state = optimizer.init(params)
    update = jax.jit(
        lambda params, state, grads: optimizer.update(grads, state, optimizer.pre(params, state))
    )
    for step in range(count):
        state = change(step, state)
        before = optimizer.pre(params, state)
        updates, state = update(params, state, grads_at(step, params))
        params = optax.apply_updates(before, updates)
    return params, state


# --- Momentum -------------------------------------------------------------------------------------


def test_nesterov_is_the_gradient_at_the_look_ahead_point():
    """v <- mu v + g(theta - eta mu v), theta <- theta - eta v; our parameters are the look-ahead
    point itself.
    """
    eta, mu, h, centre = 0.1, 0.9, 0.7, 2.0
    optimizer = make_optimizer("nesterov", eta, momentum=mu)
    with jax.enable_x64(True):
        ahead = jnp.array(0.3)
        state = optimizer.init(ahead)
        theta, v = 0.3, 0.0
        for _ in range(30):
            assert float(ahead) == pytest.approx(theta - eta * mu * v, rel=1e-12)
            v = mu * v + h * (theta - eta * mu * v - centre)
            theta = theta - eta * v
            updates, state = optimizer.update(h * (ahead - centre), state, ahead)
            ahead = ahead + updates


def test_where_the_rate_stands_matters_only_when_it_changes():
    def pair(rate):
        return [
            steps(make_optimizer("momentum", rate, inside=inside), 6)[0] for inside in (False, True)
        ]

    chex.assert_trees_all_close(*pair(0.1), rtol=1e-5)
    outside, inside = pair(lambda count: 0.1 / (1 + count))
    assert np.abs(outside["encoder"]["kernel"] - inside["encoder"]["kernel"]).max() > 1e-2


def test_lars_multiplies_by_the_rate_last():
    """Raising the rate raises the step at once, whatever the momentum remembers."""
    slow, fast = (
        make_optimizer("lars", lambda count, k=k: jnp.where(count < 2, 0.1, k)) for k in (0.1, 1.0)
    )
    (before, state), after = steps(slow, 2), {}
    for name, optimizer in (("slow", slow), ("fast", fast)):
        after[name], _ = optimizer.update(grads_at(2), state, before)
    chex.assert_trees_all_close(
        after["fast"], jax.tree.map(lambda u: 10 * u, after["slow"]), rtol=1e-5
    )


# --- The learning rate's scale, and a step taken apart --------------------------------------------


@pytest.mark.parametrize(
    "options", [{"name": "momentum", "inside": True}, {"name": "adam"}, {"name": "lookahead"}]
)
@pytest.mark.parametrize("decay", DECAYS)
def test_rescaling_is_another_learning_rate_everywhere(options, decay):
    """In the buffer that holds it, and in d = eta lambda."""

    def changing(count):
        return jnp.where(count < 2, 0.2, 0.05)

    lowered = make_optimizer(learning_rate=0.2, weight_decay=0.5, decay=decay, **options)
    planned = make_optimizer(learning_rate=changing, weight_decay=0.5, decay=decay, **options)
    one, state = steps(
        lowered, 4, change=lambda step, state: rescale(state, 0.25) if step == 2 else state
    )
    two, _ = steps(planned, 4)
    chex.assert_trees_all_close(one, two, rtol=1e-6)
    assert float(state.scale) == 0.25 and int(state.count) == 4


def test_a_literal_share_does_not_follow_the_learning_rate():
    optimizer = make_optimizer(
        "sgd", 0.0, weight_decay=0.5, decay_scale="literal", decay="decoupled"
    )
    params, _ = steps(optimizer, 2, change=lambda step, state: rescale(state, 0.1))
    chex.assert_trees_all_close(params, jax.tree.map(lambda p: p / 4, PARAMS), rtol=1e-6)


def test_l2_is_no_share_whatever_the_scale():
    """weight_decay * theta joins the gradient in both, so it may be 1 or more; a step takes eta
    times that.
    """
    optimizer = make_optimizer("sgd", 0.1, weight_decay=2.0, decay_scale="literal", decay="coupled")
    state, zero = optimizer.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    move, share = optimizer.apart(zero, state, PARAMS)
    chex.assert_trees_all_close(move, jax.tree.map(lambda p: -0.2 * p, PARAMS), rtol=1e-6)
    assert [float(d) for d in jax.tree.leaves(share)] == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_a_step_taken_apart(decay, grouped):
    """-eta U and d, from which the equations of the decays give the step again."""
    optimizer = make_optimizer("momentum", 0.1, weight_decay=0.5, decay=decay, exclude="bias")
    if grouped:
        optimizer = by_group(
            {"a": optimizer, "b": optimizer}, lambda params: assign_groups(params, PATTERNS)
        )
    params, state = steps(optimizer, 2)
    move, share = optimizer.apart(grads_at(2), state, params)
    updates, _ = optimizer.update(grads_at(2), state, params)
    assert (
        float(share["encoder"]["kernel"]) == pytest.approx(0.05) and share["linear1"]["bias"] == 0
    )
    after = {
        "decoupled": lambda theta, u, d: u - d * theta,
        "realtime": lambda theta, u, d: (1 - d) * (theta + u) - theta,
    }.get(decay, lambda theta, u, d: u)
    chex.assert_trees_all_close(
        jax.tree.map(after, params, move, share), updates, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("decay", DECAYS)
def test_a_decay_of_plain_zero_costs_nothing(decay):
    """The program is that of the optimizer alone, but for numbers that nobody uses."""
    none = make_optimizer("adam", 0.1, weight_decay=lambda count: 0.0, decay=decay)
    direction, state = DIRECTIONS["adam"](), none.init(PARAMS)

    def alone(p, s):
        updates, inner = direction.update(p, s.inner, p, rate=jnp.asarray(0.1, float) * s.scale)
        return updates, s._replace(count=s.count + 1, inner=inner)

    def program(step):
        lines = str(jax.make_jaxpr(step)(PARAMS, state)).split("\n")
        return [line for line in lines if not line.strip().startswith("_:f32[] ")]

    assert program(lambda p, s: none.update(p, s, none.pre(p, s))) == program(alone)


def test_no_decay_takes_no_share():
    for weight_decay in (0.0, lambda count: 0.0):
        optimizer = make_optimizer("adamw", 0.1, weight_decay=weight_decay)
        assert not any(
            jax.tree.leaves(optimizer.apart(grads_at(0), optimizer.init(PARAMS), PARAMS)[1])
        )


def test_auto_is_decoupled_for_adamw_and_lion_alone():
    for name in DIRECTIONS:
        auto, usual = (
            make_optimizer(name, 0.1, weight_decay=0.5, decay=decay)
            for decay in ("auto", "decoupled" if name in ("adamw", "lion") else "coupled")
        )
        state = auto.init(PARAMS)
        jaxprs = [str(jax.make_jaxpr(o.update)(PARAMS, state, PARAMS)) for o in (auto, usual)]
        assert jaxprs[0] == jaxprs[1], name


# --- Groups, masks and clipping -------------------------------------------------------------------


def test_excluded_parameters_do_not_decay():
    optimizer = make_optimizer("sgd", 1.0, weight_decay=0.1, exclude=r"linear\d*/bias")
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(
        updates["encoder"], jax.tree.map(lambda p: -0.1 * p, PARAMS["encoder"]), atol=1e-7
    )
    chex.assert_trees_all_equal(updates["linear1"], zero["linear1"])
    assert decayed(PARAMS, "") == {"encoder": {"kernel": True}, "linear1": {"bias": True}}


def test_groups_each_have_their_own_rate_and_decay():
    parts = {"a": make_optimizer("sgd", 0.1), "b": make_optimizer("sgd", 2.0, weight_decay=0.5)}
    optimizer = by_group(parts, lambda params: assign_groups(params, PATTERNS))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(ones, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["encoder"]["kernel"], jnp.full((2, 3), -0.1))
    chex.assert_trees_all_close(
        updates["linear1"]["bias"], -2.0 * (1 + 0.5 * PARAMS["linear1"]["bias"])
    )


@pytest.mark.parametrize("decay", DECAYS)
def test_equal_groups_are_one_optimizer(decay):
    """Also by layer, numbered through all groups, and by mask, which sees whole paths."""
    kernel, vector = jnp.arange(4.0).reshape(2, 2), jnp.arange(1.0, 3.0)
    params = {
        "encoder": {"conv": {"kernel": kernel, "bias": vector}, "norm": {"scale": vector}},
        "linear1": {"out": {"kernel": -kernel, "bias": vector}},
    }
    order = ("linear1/out", "encoder/conv", "encoder/norm")
    options = {
        "weight_decay": 0.5,
        "decay": decay,
        "layerwise": "i/n",
        "exclude": "^linear1/.*bias",
        "order": order,
    }
    groups = {name: make_optimizer("adam", 0.1, **options) for name in ("a", "b", "empty")}
    found, state = steps(
        by_group(groups, lambda params: assign_groups(params, PATTERNS)), 3, params
    )
    chex.assert_trees_all_close(
        found, steps(make_optimizer("adam", 0.1, **options), 3, params)[0], rtol=1e-6
    )
    assert set(state) == {"a", "b", "empty"} and set(state["b"].inner[0].mu) == {
        "linear1/out/kernel",
        "linear1/out/bias",
    }
    assert {int(part.count) for part in state.values()} == {3}
    assert {float(part.scale) for part in rescale(state, 0.5).values()} == {0.5}


def test_pre_decay_goes_through_the_groups():
    parts = {
        "a": make_optimizer("sgd", 0.1, weight_decay=5.0, decay="pre"),
        "b": make_optimizer("sgd", 0.1),
    }
    optimizer = by_group(parts, lambda params: assign_groups(params, PATTERNS))
    phi = optimizer.pre(PARAMS, optimizer.init(PARAMS))
    chex.assert_trees_all_close(phi["encoder"]["kernel"], PARAMS["encoder"]["kernel"] / 2)
    chex.assert_trees_all_equal(phi["linear1"], PARAMS["linear1"])


@pytest.mark.parametrize("patterns", [{"a": "encoder/"}, {"a": "encoder/", "b": ".*"}])
def test_a_parameter_in_no_group_or_in_two_is_refused(patterns):
    with pytest.raises(UserError, match="exactly one"):
        assign_groups(PARAMS, patterns)


def test_clipping_comes_before_decay_and_spans_the_groups():
    grads = {
        "encoder": {"kernel": jnp.full((2, 3), 4.0)},
        "linear1": {"bias": jnp.array([0.1, -9.0, 0.0])},
    }
    parts = {name: make_optimizer("sgd", 1.0, weight_decay=0.5) for name in ("a", "b")}
    grouped = by_group(parts, lambda params: assign_groups(params, PATTERNS))

    def clip(**bounds):
        optimizer = clipped(grouped, **bounds)
        updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        chex.assert_trees_all_equal(
            optimizer.apart(grads, optimizer.init(PARAMS), PARAMS)[0], updates
        )
        # what came before the decay
        return jax.tree.map(lambda u, p: -u - 0.5 * p, updates, PARAMS)

    by_value = jax.tree.map(lambda g: jnp.clip(g, -1, 1), grads)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(by_value)))
    chex.assert_trees_all_close(clip(), grads, atol=1e-6)
    chex.assert_trees_all_close(clip(by_value=1.0), by_value, atol=1e-6)
    both = jax.tree.map(lambda g: g * 0.5 / norm, by_value)
    chex.assert_trees_all_close(clip(by_value=1.0, by_norm=0.5), both, atol=1e-6)
    chex.assert_trees_all_close(clip(by_norm=100.0), grads, atol=1e-6)


# --- Mistakes -------------------------------------------------------------------------------------


def test_options_are_the_builders_own():
    assert options_of("sgd") == {} and options_of("adamw") == {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
    assert set(options_of("lookahead", "lars")) == {
        "inner",
        "period",
        "slow",
        "momentum",
        "trust",
        "eps",
    }
    make_optimizer("lookahead", 0.1, inner="nesterov", momentum=0.5)  # the inner one's momentum


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("momentun", {}, "optimizer.name: got 'momentun', did you mean 'momentum'"),
        ("natural", {"block": 0}, "optimizer.block: got 0, takes a whole number of at least 1"),
        ("natural", {"block": 2.5}, "optimizer.block: got 2.5, takes a whole number"),
        ("lookahead", {"period": float("inf")}, "optimizer.period: got inf, takes a whole number"),
        ("sgd", {"decay": "l1"}, "optimizer.decay: got 'l1', it takes: auto, coupled"),
        (
            "sgd",
            {"decay_scale": "litteral"},
            "optimizer.decay_scale: got 'litteral', did you mean 'literal'",
        ),
        ("sgd", {"layerwise": "men"}, "optimizer.layerwise: got 'men', did you mean 'mean'"),
        (
            "sgd",
            {"exclude": "(bias"},
            r"optimizer.exclude: got '\(bias', takes a regular expression",
        ),
        ("sgd", {"weight_decay": -1}, "optimizer.weight_decay: got -1"),
        ("sgd", {"weight_decay": float("nan")}, "optimizer.weight_decay: got nan"),
        (
            "sgd",
            {"weight_decay": 1.0, "decay_scale": "literal", "decay": "pre"},
            r"got 1.0, takes .* \[0, 1\)",
        ),
        (
            "sgd",
            {"weight_decay": lambda t: 1.5, "decay_scale": "literal", "decay": "realtime"},
            "got 1.5",
        ),
        ("sgd", {"learning_rate": -0.1}, "optimizer.learning_rate: got -0.1"),
        ("momentum", {"momentum": 1.0}, "optimizer.momentum: got 1.0"),
        ("sgd", {"b1": 0.9}, "optimizer.b1: got 0.9, which is no option of sgd; it takes none"),
        (
            "adam",
            {"b3": 0.9},
            r"optimizer.b3: .* no option of adam; did you mean 'b\d'\? It takes: b1, b2, eps",
        ),
        ("adam", {"b2": 1.0}, r"optimizer.b2: got 1.0, takes a number in \[0, 1\)"),
        ("adam", {"eps": -1e-8}, "optimizer.eps: got -1e-08"),
        ("natural", {"damping": 0.0}, "optimizer.damping: got 0.0"),
        ("lookahead", {"inner": "sdg"}, "optimizer.inner: got 'sdg', did you mean 'sgd'"),
        ("lookahead", {"inner": "lookahead"}, "optimizer.inner: got 'lookahead'"),
        (
            "lookahead",
            {"inner": "sgd", "b1": 0.5},
            "optimizer.b1: .* no option of lookahead; it takes: inner, period",
        ),
        ("lookahead", {"period": 0}, "optimizer.period: got 0, takes a whole number"),
        ("lookahead", {"slow": 0.0}, "optimizer.slow: got 0.0"),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(UserError, match=words):
        make_optimizer(name, **({"learning_rate": 0.1} | options))


def test_a_layer_rule_must_leave_a_literal_share_under_one():
    optimizer = make_optimizer(
        "sgd",
        0.1,
        weight_decay=0.8,
        decay="pre",
        decay_scale="literal",
        layerwise="mean",
        order=("encoder", "linear1"),
    )
    two = {"encoder": {"kernel": jnp.ones((2, 2))}, "linear1": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(UserError, match="optimizer.weight_decay: .* 1.0.* in the deepest layer"):
        optimizer.init(two)
    optimizer.init({"encoder": two["encoder"]})


@pytest.mark.parametrize(
    "bounds, words", [({"by_value": -1.0}, "clip_value: got -1"), ({"by_norm": -2}, "clip_norm")]
)
def test_bounds_of_the_gradient_are_positive(bounds, words):
    with pytest.raises(UserError, match=words):
        clipped(make_optimizer("sgd", 0.1), **bounds)
