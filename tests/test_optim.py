"""Optimizers against PyTorch's published update equations in float64, masks, groups and schedules."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.errors import UserError
from ssl_jax.optim import assign_groups, by_group, decayed, make_optimizer
from ssl_jax.optim.schedules import make_schedule, target_rate

PARAMS = {"encoder": {"kernel": jnp.arange(6.0).reshape(2, 3) / 5}, "linear1": {"bias": jnp.array([0.5, -1.0, 2.0])}}


def grads_at(step):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), PARAMS)


def torch_sgd(theta, grads, rates, momentum, weight_decay, nesterov):
    """torch.optim.SGD's documented algorithm: d = g + wd theta; b = mu b + d; theta -= lr (d + mu b or b)."""
    theta, buffer = np.float64(theta), 0.0
    for grad, rate in zip(grads, rates, strict=True):
        d = np.float64(grad) + weight_decay * theta
        buffer = momentum * buffer + d
        theta = theta - rate * (d + momentum * buffer if nesterov else buffer)
    return theta


@pytest.mark.parametrize("name, momentum", [("sgd", 0.0), ("momentum", 0.9), ("nesterov", 0.9)])
def test_twenty_steps_of_pytorch_sgd(name, momentum):
    rates = [0.1 * (1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)]
    optimizer = make_optimizer(name, optax.cosine_decay_schedule(0.1, 20), momentum=momentum, weight_decay=0.05)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(20):
        params = optimizer.pre(params, state)
        updates, state = optimizer.update(grads_at(step), state, params)
        params = optax.apply_updates(params, updates)
    for path in [("encoder", "kernel"), ("linear1", "bias")]:
        grads = [grads_at(k)[path[0]][path[1]] for k in range(20)]
        expected = torch_sgd(PARAMS[path[0]][path[1]], grads, rates, momentum, 0.05, name == "nesterov")
        chex.assert_trees_all_close(params[path[0]][path[1]], np.float32(expected), atol=1e-6)


def test_excluded_parameters_do_not_decay():
    optimizer = make_optimizer("sgd", 1.0, weight_decay=0.1, exclude=r"linear\d*/bias")
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["encoder"], jax.tree.map(lambda p: -0.1 * p, PARAMS["encoder"]), atol=1e-7)
    chex.assert_trees_all_equal(updates["linear1"], zero["linear1"])
    assert decayed(PARAMS, "") == {"encoder": {"kernel": True}, "linear1": {"bias": True}}


def test_groups_each_have_their_own_rate_and_decay():
    patterns = {"a": "encoder/", "b": "linear1/"}
    parts = {"a": make_optimizer("sgd", 0.1), "b": make_optimizer("sgd", 2.0, weight_decay=0.5)}
    optimizer = by_group(parts, lambda params: assign_groups(params, patterns))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(ones, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["encoder"]["kernel"], jnp.full((2, 3), -0.1))
    chex.assert_trees_all_close(updates["linear1"]["bias"], -2.0 * (1 + 0.5 * PARAMS["linear1"]["bias"]))


@pytest.mark.parametrize("patterns", [{"a": "encoder/"}, {"a": "encoder/", "b": ".*"}])
def test_a_parameter_in_no_group_or_in_two_is_refused(patterns):
    with pytest.raises(UserError, match="exactly one"):
        assign_groups(PARAMS, patterns)


def test_schedules_at_their_ends():
    constant = make_schedule("constant", 0.3, 100)
    cosine = make_schedule("cosine", 0.3, 100, warmup_steps=20)
    assert float(constant(0)) == float(constant(99)) == pytest.approx(0.3)
    assert float(cosine(0)) == 0 and float(cosine(10)) == pytest.approx(0.15)
    assert float(cosine(20)) == pytest.approx(0.3) and float(cosine(100)) == pytest.approx(0, abs=1e-7)


def test_target_rate_rises_to_one():
    tau = target_rate("cosine", 0.99, 50)
    assert float(tau(0)) == pytest.approx(0.99) and float(tau(50)) == pytest.approx(1.0)
    assert float(tau(25)) == pytest.approx(1 - 0.01 / 2)
    assert target_rate("constant", 0.996, 50)(7) == 0.996


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: make_optimizer("momentun", 0.1), "did you mean 'momentum'"),
        (lambda: make_optimizer("sgd", 0.1, decay="l1"), "optimizer.decay: got 'l1'"),
        (lambda: make_optimizer("sgd", 0.1, weight_decay=-1), "optimizer.weight_decay: got -1"),
        (lambda: make_optimizer("momentum", 0.1, momentum=1.0), "optimizer.momentum: got 1.0"),
        (lambda: make_schedule("cosin", 0.1, 10), "did you mean 'cosine'"),
        (lambda: make_schedule("cosine", 0.1, 10, 11), "warmup_epochs"),
        (lambda: target_rate("linear", 0.9, 10), "target.schedule: got 'linear'"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
