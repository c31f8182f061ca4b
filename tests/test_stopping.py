"""Reduce-on-plateau and early stopping by hand-worked histories and, where it is installed,
PyTorch's scheduler.
"""

import doctest

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.optim import stopping
from ssl_jax.optim.stopping import plateau_scale, should_stop


def scales(history, **options):
    """The scale after each evaluation."""
    return [plateau_scale(history[:k], **options) for k in range(len(history) + 1)]


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(stopping).failed == 0


def test_a_plateau_worked_by_hand():
    """Best 0.5 at the second; two bad ones are borne, the third lowers the rate and starts the
    count anew.
    """
    history = [0.4, 0.5, 0.5, 0.49, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6]
    found = scales(history, factor=0.5, patience=2, threshold=0.0)
    assert found == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_cooldown_is_not_counted_and_smallest_holds():
    flat = [0.5] * 9
    assert scales(flat, factor=0.5, patience=1) == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
        0.125,
        0.0625,
    ]
    assert scales(flat, factor=0.5, patience=1, cooldown=2) == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
    ]
    assert scales(flat, factor=0.5, patience=1, smallest=0.3)[-1] == 0.3


def test_a_threshold_is_absolute_and_may_be_met_step_by_step():
    """The best moves only when beaten by the threshold, so slow progress adds up."""
    assert plateau_scale([0.50, 0.505, 0.511], factor=0.1, patience=1, threshold=0.01) == 1
    assert plateau_scale([0.50, 0.505, 0.509], factor=0.1, patience=1, threshold=0.01) == 0.1


@pytest.mark.parametrize(
    "better, history", [("higher", [1, 2, 3]), ("lower", [3, 2, 1]), ("lower", [0.3, -1, -2])]
)
def test_progress_changes_nothing(better, history):
    assert plateau_scale(history, factor=0.1, patience=0, better=better) == 1
    assert not should_stop(history, patience=1, better=better)
    assert plateau_scale(history[::-1], factor=0.1, patience=0, better=better) == pytest.approx(
        0.01
    )
    assert should_stop(history[::-1], patience=2, better=better)


def test_stopping_worked_by_hand():
    history = [0.4, 0.5, 0.5, 0.49, 0.51, 0.3, 0.51]
    assert [should_stop(history[:k], patience=2) for k in range(8)] == [0, 0, 0, 0, 1, 0, 0, 1]
    assert should_stop(history, patience=3, threshold=0.02)
    assert not should_stop([], patience=1) and not should_stop([0.1], patience=1)


def test_what_is_not_a_number_is_never_better():
    nan = float("nan")
    assert should_stop([0.5, nan, nan], patience=2) and not should_stop([nan, nan, 0.1], patience=2)
    assert plateau_scale([0.5, nan, nan], factor=0.1, patience=1) == 0.1


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: plateau_scale([], factor=1.0, patience=1),
            r"plateau.factor: got 1.0, takes a number in \(0, 1\)",
        ),
        (lambda: plateau_scale([], factor=0.1, patience=-1), "plateau.patience: got -1"),
        (
            lambda: plateau_scale([], factor=0.1, patience=1, threshold=-1),
            "plateau.threshold: got -1",
        ),
        (
            lambda: plateau_scale([], factor=0.1, patience=1, cooldown=-1),
            "plateau.cooldown: got -1",
        ),
        (lambda: plateau_scale([], factor=0.1, patience=1, smallest=2), "plateau.smallest: got 2"),
        (
            lambda: plateau_scale([], factor=0.1, patience=1, better="max"),
            "plateau.better: got 'max'",
        ),
        (lambda: should_stop([], patience=0), "stopping.patience: got 0"),
        (lambda: should_stop([], patience=1, threshold=-1), "stopping.threshold: got -1"),
        (
            lambda: should_stop([], patience=1, better="max"),
            "stopping.better: got 'max', it takes: higher, lower",
        ),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_pytorchs_scheduler(better, cooldown):
    torch = pytest.importorskip("torch")
    history = np.random.default_rng(0).normal(size=60).round(1).tolist()
    options = {"factor": 0.5, "patience": 2, "threshold": 0.05, "cooldown": cooldown}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode={"higher": "max", "lower": "min"}[better],
        threshold_mode="abs",
        min_lr=0.01,
        **options,
    )
    rates = [1.0]
    for value in history:
        theirs.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert scales(history, smallest=0.01, better=better, **options) == pytest.approx(rates)
    assert rates[-1] < 0.1


@pytest.mark.parametrize(("better", "sign"), [("higher", 1), ("lower", -1)])
def test_the_threshold_is_in_units_of_the_metric(better, sign):
    """A step of 0.9 of the threshold is no progress, one of 1.1 is."""
    history = [sign * value for value in (1.0, 1.09, 1.11, 1.2, 1.22)]
    found = stopping.improvements(history, threshold=0.1, better=better)
    assert found == [True, False, True, False, True]
