"""Schedules against formulas of their papers in NumPy, before and after warm-up; the steps at which
cycles end.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.optim.schedules import (
    SCHEDULES,
    cycle_ends,
    make_schedule,
    options_of_schedule,
    target_rate,
)

PEAK, STEPS = 0.3, 40


def triangle(t, cycle):
    """Smith 2017's code, section 3: step size of half a cycle."""
    half = cycle / 2
    number = np.floor(1 + t / (2 * half))
    return max(0.0, 1 - abs(t / half - 2 * number + 1)), number


def restarts(t, first, growth, end):
    """Loshchilov & Hutter 2017, equation 5, walking from restart to restart."""
    length = first
    while t >= length:
        t, length = t - length, length * growth
    return end + (1 - end) * (1 + math.cos(math.pi * t / length)) / 2


SHAPES = {
    "constant": ({}, lambda t: 1.0),
    "linear": ({"end": 0.2}, lambda t: 1 - 0.8 * t / STEPS),
    "step": ({"every": 7, "factor": 0.5}, lambda t: 0.5 ** (t // 7)),
    "cosine": ({"end": 0.1}, lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t / STEPS)) / 2),
    "polynomial": ({"power": 3.0, "end": 0.1}, lambda t: 0.1 + 0.9 * (1 - t / STEPS) ** 3),
    "triangular": ({"cycle": 8, "low": 0.25}, lambda t: 0.25 + 0.75 * triangle(t, 8)[0]),
    "triangular2": (
        {"cycle": 9, "low": 0.1},
        lambda t: 0.1 + 0.9 * triangle(t, 9)[0] / 2 ** (triangle(t, 9)[1] - 1),
    ),
    "exp_range": (
        {"cycle": 8, "low": 0.1, "gamma": 0.95},
        lambda t: 0.1 + 0.9 * triangle(t, 8)[0] * 0.95**t,
    ),
    "sgdr": ({"cycle": 5, "growth": 2.0, "end": 0.1}, lambda t: restarts(t, 5, 2, 0.1)),
}
# What is left when no option is given.
DEFAULTS = {
    "linear": lambda t: 1 - t / STEPS,
    "step": lambda t: 0.1 ** (t // 14),
    "cosine": lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2,
    "polynomial": lambda t: (1 - t / STEPS) ** 2,
    "triangular": lambda t: 0.25 + 0.75 * triangle(t, STEPS)[0],
    "triangular2": lambda t: 0.25 + 0.75 * triangle(t, STEPS)[0],
    "exp_range": lambda t: 0.25 + 0.75 * triangle(t, STEPS)[0] * 0.99994**t,
    "sgdr": lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2,
}


def values(schedule, steps):
    """As a compiled step asks for them."""
    return np.asarray(
        jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t), float)))(jnp.arange(steps))
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_shapes(name):
    options, shape = SHAPES[name]
    found = values(make_schedule(name, PEAK, STEPS, **options), STEPS)
    np.testing.assert_allclose(found, [PEAK * shape(t) for t in range(STEPS)], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", DEFAULTS)
def test_shapes_without_options(name):
    found = values(make_schedule(name, PEAK, STEPS), STEPS)
    np.testing.assert_allclose(
        found, [PEAK * DEFAULTS[name](t) for t in range(STEPS)], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_before_any_of_them(name):
    """From 0 to the schedule's first value, then the schedule over the steps that are left."""
    options, shape = SHAPES[name]
    found = values(make_schedule(name, PEAK, STEPS + 10, 10, **options), STEPS + 10)
    first = PEAK * shape(0)
    expected = [first * t / 10 for t in range(10)] + [PEAK * shape(t) for t in range(STEPS)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_peak_may_be_traced(name):
    options, shape = SHAPES[name]
    found = jax.jit(jax.vmap(lambda peak: make_schedule(name, peak, STEPS, **options)(3)))(
        jnp.array([0.0, 1.0, 2.0])
    )
    np.testing.assert_allclose(found, shape(3) * np.arange(3), rtol=1e-5)


def test_schedules_at_their_ends():
    constant = make_schedule("constant", 0.3, 100)
    cosine = make_schedule("cosine", 0.3, 100, warmup_steps=20)
    assert float(constant(0)) == float(constant(99)) == pytest.approx(0.3)
    assert float(cosine(0)) == 0 and float(cosine(10)) == pytest.approx(0.15)
    assert float(cosine(20)) == pytest.approx(0.3) and float(cosine(100)) == pytest.approx(
        0, abs=1e-7
    )
    for name in SCHEDULES:  # all steps are warm-up
        assert float(make_schedule(name, 0.3, 5, 5)(4)) <= 0.3


@pytest.mark.parametrize(
    "name, total, warmup, options, ends",
    [
        ("sgdr", 40, 0, {"cycle": 5, "growth": 2.0}, (5, 15, 35, 40)),
        ("sgdr", 35, 0, {"cycle": 5, "growth": 2.0}, (5, 15, 35)),
        ("sgdr", 33, 3, {"cycle": 10}, (13, 23, 33)),
        ("triangular2", 24, 4, {"cycle": 8}, (12, 20, 24)),
        ("sgdr", 24, 4, {}, (24,)),
        ("cosine", 24, 4, {}, (24,)),
        ("constant", 4, 4, {}, (4,)),
    ],
)
def test_cycle_ends(name, total, warmup, options, ends):
    assert cycle_ends(name, total, warmup, **options) == ends
    # just before an end of a cycle the rate is at its lowest, and then at its peak again
    if name == "sgdr":
        rates = values(make_schedule(name, 1.0, total, warmup, **options), total)
        assert all(rates[end - 1] < rates[end - 2] and rates[end] == 1 for end in ends[:-1])


def test_target_rate_rises_to_one():
    tau = target_rate("cosine", 0.99, 50)
    assert float(tau(0)) == pytest.approx(0.99) and float(tau(50)) == pytest.approx(1.0)
    assert float(tau(25)) == pytest.approx(1 - 0.01 / 2)
    assert target_rate("constant", 0.996, 50)(7) == 0.996


def test_options_are_the_builders_own():
    assert options_of_schedule("constant") == {} and options_of_schedule("sgdr") == {
        "cycle": 0,
        "growth": 1,
        "end": 0,
    }


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("cosin", {}, "schedule.name: got 'cosin', did you mean 'cosine'"),
        ("cosine", {"warmup_steps": 11}, "schedule.warmup_epochs: 11 steps"),
        (
            "cosine",
            {"power": 2.0},
            "schedule.power: got 2.0, which is no option of cosine; it takes: end",
        ),
        (
            "constant",
            {"end": 0.1},
            "schedule.end: got 0.1, which is no option of constant; it takes none",
        ),
        (
            "cosine",
            {"end": 1.5},
            r"schedule.end: got 1.5, takes a fraction of the peak, in \[0, 1\]",
        ),
        ("triangular", {"low": -0.1}, "schedule.low: got -0.1"),
        ("polynomial", {"power": 0}, "schedule.power: got 0, takes a number above 0"),
        ("step", {"factor": 0.0}, r"schedule.factor: got 0.0, takes a number in \(0, 1\]"),
        ("step", {"every": 2.5}, "schedule.every: got 2.5, takes a whole number"),
        ("sgdr", {"cycle": -1}, "schedule.cycle: got -1, takes a whole number"),
        ("sgdr", {"growth": 0.5}, "schedule.growth: got 0.5, takes a number of at least 1"),
        ("exp_range", {"gamma": float("nan")}, "schedule.gamma: got nan"),
    ],
)
def test_mistakes_are_named(name, options, words):
    for function in (
        lambda **o: make_schedule(name, 0.1, 10, **o),
        lambda **o: cycle_ends(name, 10, **o),
    ):
        with pytest.raises(UserError, match=words):
            function(**options)


def test_target_rates_mistake():
    with pytest.raises(UserError, match="target.schedule: got 'linear'"):
        target_rate("linear", 0.9, 10)


def test_cyclical_rates_of_pytorch():
    torch = pytest.importorskip("torch")
    for name, gamma in (("triangular", {}), ("triangular2", {}), ("exp_range", {"gamma": 0.95})):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        theirs = torch.optim.lr_scheduler.CyclicLR(
            optimizer,
            base_lr=0.1,
            max_lr=1.0,
            step_size_up=4,
            mode=name,
            cycle_momentum=False,
            **gamma,
        )
        rates = []
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        np.testing.assert_allclose(
            values(make_schedule(name, 1.0, STEPS, cycle=8, low=0.1, **gamma), STEPS), rates, 1e-5
        )
