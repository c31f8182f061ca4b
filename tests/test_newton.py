"""Newton's method against scikit-learn, finite differences and ridge regression's closed form."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from ssl_jax.errors import UserError
from ssl_jax.probes import newton

CLASSES, L2 = 3, 1e-2


def problem(train=200, test=100, features=6, noise=2.0, seed=0):
    """Overlapping Gaussian classes of unequal scale: train_x, train_y, test_x, test_y."""
    rng = np.random.default_rng(seed)
    centres, scale, sets = rng.normal(size=(CLASSES, features)), rng.uniform(0.5, 2, features), []
    for count in (train, test):
        label = rng.integers(0, CLASSES, count).astype(np.int32)
        sets += [
            (scale * (centres[label] + noise * rng.normal(size=(count, features)))).astype(
                np.float32
            ),
            label,
        ]
    return sets


def as_problem(x, y, loss, l2=L2):
    return newton.Problem(
        newton.with_ones(x.astype(np.float64)), np.eye(CLASSES)[y], l2, newton.SCORE_LOSSES[loss]
    )


def some_weights(features=6, size=1.0):
    return size * np.random.default_rng(5).normal(size=(features + 1, CLASSES))


@pytest.mark.parametrize("loss", newton.SCORE_LOSSES)
def test_derivatives_are_those_of_central_differences(loss):
    x, y, _, _ = problem(train=30, features=2)
    task, weights, h = as_problem(x, y, loss), some_weights(2), 1e-4
    gradient, hessian = newton.derivatives(task, weights)
    for place in np.ndindex(*weights.shape):
        shift = np.zeros_like(weights)
        shift[place] = h
        slope = (
            newton.objective(task, weights + shift) - newton.objective(task, weights - shift)
        ) / (2 * h)
        assert gradient[place] == pytest.approx(slope, abs=1e-7)
        above, below = (newton.derivatives(task, weights + sign * shift)[0] for sign in (1, -1))
        row = hessian[place[1], place[0]]  # (classes, features + 1)
        np.testing.assert_allclose(row.T, (above - below) / (2 * h), atol=1e-6)


@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_logistic_regression_is_scikit_learns(l2):
    """Its objective is C sum loss + |kernel|^2 / 2, so that C = 1 / (N l2)."""
    x, y, _, _ = problem()
    task, weights = as_problem(x, y, "softmax", l2), np.zeros((7, CLASSES))
    for _ in range(8):
        weights = newton.newton_step(task, weights)
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-10, max_iter=10_000).fit(
        x.astype(np.float64), y
    )
    np.testing.assert_allclose(weights[:-1], model.coef_.T, atol=1e-4)
    np.testing.assert_allclose(
        weights[-1] - weights[-1].mean(), model.intercept_ - model.intercept_.mean(), atol=1e-4
    )
    assert np.abs(newton.derivatives(task, weights)[0]).max() < 1e-9


@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_one_step_from_anywhere_lands_on_ridge_regressions_closed_form(size):
    """(X^T X + N l2 I) W = X^T (T - 1 b^T): scikit-learn's, with alpha = N l2."""
    x, y, _, _ = problem()
    weights = newton.newton_step(as_problem(x, y, "squared"), some_weights(size=size))
    model = Ridge(alpha=len(x) * L2, solver="cholesky").fit(
        x.astype(np.float64), np.eye(CLASSES)[y]
    )
    np.testing.assert_allclose(weights[:-1], model.coef_.T, atol=1e-7)
    np.testing.assert_allclose(weights[-1], model.intercept_, atol=1e-7)


def test_damping_lowers_the_objective_where_a_whole_step_would_raise_it():
    """From weights so large that the softmax is nearly flat, undamped Newton runs away."""
    x, y, _, _ = problem()
    task, weights = as_problem(x, y, "softmax", 1e-6), some_weights(size=20.0)
    gradient, hessian = newton.derivatives(task, weights)
    direction = np.linalg.solve(
        hessian.reshape(weights.size, -1) + 1e-9 * np.eye(weights.size), gradient.T.ravel()
    )
    whole = weights - direction.reshape(weights.T.shape).T
    assert newton.objective(task, whole) > newton.objective(task, weights)
    values = [newton.objective(task, weights)]
    for _ in range(25):
        weights = newton.newton_step(task, weights)
        values.append(newton.objective(task, weights))
    assert np.all(np.diff(values) <= 0)
    assert np.abs(newton.derivatives(task, weights)[0]).max() < 1e-8


def test_probe_reports_each_step_on_standardised_features():
    data = problem()
    found = newton.newton_probe(*data, num_classes=CLASSES, l2=L2, steps=6)
    scaler = StandardScaler().fit(data[0].astype(np.float64))
    x, test_x = (scaler.transform(x.astype(np.float64)) for x in data[::2])
    model = LogisticRegression(C=1 / (len(x) * L2), tol=1e-10, max_iter=10_000).fit(x, data[1])
    assert found.last_accuracy == found.accuracy[-1] == model.score(test_x, data[3])
    assert (
        found.best_accuracy == max(found.accuracy) and len(found.accuracy) == len(found.loss) == 6
    )
    assert found.loss[-1] == pytest.approx(log_loss(data[1], model.predict_proba(x)), abs=1e-8)
    ridge = newton.newton_probe(*data, num_classes=CLASSES, l2=L2, steps=2, loss="squared")
    assert ridge.loss[0] == pytest.approx(ridge.loss[1], abs=1e-10)


def test_constant_features_and_a_class_without_examples_are_no_trouble():
    x, y, test_x, test_y = problem()
    x[:, 2], test_x[:, 2] = 1.0, 1.0
    kept = y != 2
    found = newton.newton_probe(
        x[kept], y[kept], test_x, test_y, num_classes=CLASSES, l2=L2, steps=8
    )
    assert np.isfinite(found.loss).all() and found.last_accuracy > 0.3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"l2": 0.0}, "l2 of the Newton probe: got 0.0, takes a number above 0"),
        ({"l2": float("nan")}, "l2 of the Newton probe: got nan, takes a number above 0"),
        ({"steps": 0}, "steps of the Newton probe: got 0, takes at least 1"),
        ({"loss": "hinge"}, "loss of the Newton probe: got 'hinge', it takes: softmax, squared"),
        (
            {"num_classes": 1000},
            (
                "Newton probe: got (6 features + 1) x 1000 classes = 7000 unknowns, takes at most "
                "6000: its Hessian is that number squared"
            ),
        ),
    ],
)
def test_what_newton_cannot_do_is_refused(change, message):
    with pytest.raises(UserError) as error:
        newton.newton_probe(*problem(), **{"num_classes": CLASSES, "l2": L2, "steps": 3, **change})
    assert str(error.value) == message


def test_what_is_added_to_a_singular_hessian_follows_its_scale():
    """Features of 1e7: a fixed 1e-10 would be lost in rounding, and Cholesky would fail."""
    rng = np.random.default_rng(0)
    x, y = newton.with_ones(1e7 * rng.normal(size=(60, 4))), rng.integers(0, 3, 60)
    problem = newton.Problem(x, np.eye(3)[y], 1e-3, newton.SCORE_LOSSES["softmax"])
    assert np.isfinite(newton.newton_step(problem, np.zeros((5, 3)))).all()
