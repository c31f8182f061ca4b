"""Ridge regression three ways: in closed form, by gradient descent, and by one Newton step.

Gradient descent on a quadratic, W <- W - eta ((C + l I) W - X^T T / N) with C = X^T X / N = V
diag(s) V^T, shrinks what is left of the error along eigenvector j by |1 - eta (s_j + l)| a step. So
its error is known beforehand; the largest of these factors is its rate, least for eta = 2 / (L + m)
with L, m the largest and smallest of s_j + l.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness.cells import Advance, Arrays, Cell, in_turn
from ssl_jax.experiments.harness.experiment import Experiment
from ssl_jax.intervals import rounded
from ssl_jax.probes import newton
from ssl_jax.probes.linear import (
    PENALTIES,
    Spectrum,
    leave_one_out_error,
    ridge_kernel,
    ridge_spectrum,
    standardise,
)
from ssl_jax.types import Config

REACHED = 1e-12  # relative error below which only rounding is left
RECORDED_STEPS = 60  # steps at which errors are recorded, evenly on a logarithmic scale


class Problem(NamedTuple):
    """A ridge regression, and its solution."""

    train_x: np.ndarray  # (N, F) float64, standardised features
    target: np.ndarray  # (N, K) float64, one-hot
    spectrum: Spectrum  # of both
    l2: float  # the penalty l
    closed: np.ndarray  # (F, K), the solution in closed form


def plan(config: Config, dataset: Dataset) -> dict[str, Cell]:
    """Return the one cell; UserError where a rate is not above 0."""
    if min(config.rates) <= 0:
        raise UserError(
            f"rates: got {tuple(config.rates)}, takes numbers above 0, in units of 1 / L"
        )
    return {"ridge": Cell(config.steps * (len(config.rates) + 1), partial(_solve, config, dataset))}


def make_problem(split: Split, test: Split, num_classes: int) -> tuple[Problem, np.ndarray]:
    """Return the ridge regression of the images' pixels.

    Leave-one-out error chooses the penalty.

    Args:
        split: training images and labels.
        test: test images.
        num_classes: number K of classes.

    Returns:
        The problem, and the test images' features (M, F) float64.
    """
    flat = [part.image.reshape(len(part.image), -1).astype(np.float64) for part in (split, test)]
    train_x, test_x = standardise(*flat)
    target = np.eye(num_classes)[split.label]
    spectrum = ridge_spectrum(train_x, target)
    penalty = min(PENALTIES, key=lambda p: leave_one_out_error(spectrum, target, p))
    l2 = penalty * float(spectrum.eigenvalues.mean())
    return Problem(train_x, target, spectrum, l2, ridge_kernel(spectrum, penalty)), test_x


def curvatures(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return s_j + l along the eigenvectors, and the error's norm along each at W = 0.

    Eigenvectors along which there is nothing to learn are left out.
    """
    start = np.linalg.norm(problem.spectrum.vectors.T @ problem.closed, axis=1)
    some = start > REACHED * start.max()
    return problem.spectrum.eigenvalues[some] + problem.l2, start[some]


def predicted_error(problem: Problem, rate: float, step: np.ndarray) -> np.ndarray:
    """Predict the error of gradient descent from zero.

    Args:
        problem: the ridge regression.
        rate: the learning rate.
        step: (T,) steps t.

    Returns:
        |W_t - W*| / |W*| (T,).
    """
    curvature, start = curvatures(problem)
    with np.errstate(over="ignore"):
        left = np.abs(1 - rate * curvature)[None, :] ** np.asarray(step)[:, None] * start[None, :]
        return np.linalg.norm(left, axis=1) / np.linalg.norm(start)


def gradient_descent(
    problem: Problem,
    rate: float,
    steps: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    advance: Advance,
) -> dict[str, np.ndarray]:
    """Run gradient descent from zero.

    Args:
        problem: the ridge regression.
        rate: the learning rate.
        steps: (T,) ascending numbers of steps, after each of which to measure.
        test: features (M, F) and labels (M,) of the test set.
        advance: is called with the number of steps at the end.

    Returns:
        "error", |W_t - W*| / |W*|, and "accuracy" on the test set, (T,) each.
    """
    x, target = problem.train_x, problem.target
    weights, errors, accuracies = np.zeros_like(problem.closed), [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps[-1] + 1):
            if step in steps:
                errors.append(distance(weights, problem.closed))
                accuracies.append(accuracy(weights, problem, *test))
            gradient = x.T @ (x @ weights - target) / len(x) + problem.l2 * weights
            weights = weights - rate * gradient
    advance(steps[-1])
    return {"error": np.array(errors), "accuracy": np.array(accuracies)}


def distance(weights: np.ndarray, closed: np.ndarray) -> float:
    """Return |W - W*| / |W*|."""
    return float(np.linalg.norm(weights - closed) / np.linalg.norm(closed))


def accuracy(weights: np.ndarray, problem: Problem, test_x: np.ndarray, label: np.ndarray) -> float:
    """Return the accuracy on the test set.

    The bias is the mean target, its optimum whatever the weights.

    Args:
        weights: (F, K).
        problem: holds the targets.
        test_x: features (M, F) of the test set.
        label: (M,).

    Returns:
        A fraction.
    """
    return float(np.mean((test_x @ weights + problem.target.mean(axis=0)).argmax(axis=1) == label))


def newton_error(problem: Problem) -> float:
    """Return the relative error after a Newton step from zero; NaN for too large a Hessian."""
    features, classes = problem.closed.shape
    if (features + 1) * classes > newton.LARGEST:
        return np.nan
    newton_problem = newton.Problem(
        newton.with_ones(problem.train_x),
        problem.target,
        problem.l2,
        newton.SCORE_LOSSES["squared"],
    )
    return distance(
        newton.newton_step(newton_problem, np.zeros((features + 1, classes)))[:-1], problem.closed
    )


def _solve(config: Config, dataset: Dataset, advance: Advance) -> Arrays:
    """Solve the regression in all three ways."""
    problem, test_x = make_problem(dataset.train, dataset.test, dataset.num_classes)
    curvature, _ = curvatures(problem)
    largest, smallest = curvature.max(), curvature.min()
    rates = np.sort([*(rate / largest for rate in config.rates), 2 / (largest + smallest)])
    steps = np.unique(np.round(np.geomspace(1, config.steps + 1, RECORDED_STEPS)).astype(int) - 1)
    test = test_x, dataset.test.label
    runs = [gradient_descent(problem, rate, steps, test, advance) for rate in rates]
    return {
        "l2": np.array(problem.l2),
        "curvature": np.array([largest, smallest]),
        "rates": rates,
        "step": steps,
        "factor": np.array([np.abs(1 - rate * curvature).max() for rate in rates]),
        "error": np.stack([run["error"] for run in runs]),
        "accuracy": np.stack([run["accuracy"] for run in runs]),
        "predicted": np.stack([predicted_error(problem, rate, steps) for rate in rates]),
        "newton_error": np.array(newton_error(problem)),
        "closed_accuracy": np.array(accuracy(problem.closed, problem, *test)),
        "eigenvalues": problem.spectrum.eigenvalues[::-1],
    }


def observed_factor(step: np.ndarray, error: np.ndarray) -> float:
    """Return the error's factor a step over the last sixth of the records above rounding."""
    seen = np.flatnonzero(np.isfinite(error) & (error > 100 * REACHED))
    last = seen[-max(len(seen) // 6, 2) :]
    return float((error[last[-1]] / error[last[0]]) ** (1 / (step[last[-1]] - step[last[0]])))


def gap(error: np.ndarray, predicted: np.ndarray) -> float:
    """Return the largest relative difference of both errors while they exceed rounding error."""
    seen = np.isfinite(error) & (error > 100 * REACHED)
    return float(np.max(np.abs(error[seen] / predicted[seen] - 1)))


def summarise(config: Config, dataset: Dataset, cells: dict[str, Arrays]) -> dict[str, Any]:
    """Return predicted and measured errors of every rate.

    Args:
        config: the experiment's configuration.
        dataset: the data set.
        cells: the arrays of the cell "ridge".

    Returns:
        The entries of result.json.
    """
    cell = cells["ridge"]
    largest = cell["curvature"][0]
    runs = [
        {
            "rate": rounded(rate),
            "rate_in_units_of_1_over_L": rounded(rate * largest),
            "factor": rounded(factor, 7),
            "observed_factor": rounded(observed_factor(cell["step"], error), 7),
            "gap": rounded(gap(error, predicted), 2),
            "error": rounded(error, 4),
            "predicted": rounded(predicted, 4),
            "test_accuracy": rounded(scores[-1]),
        }
        for rate, factor, error, predicted, scores in zip(
            *(cell[name] for name in ("rates", "factor", "error", "predicted", "accuracy")),
            strict=True,
        )
    ]
    singles = {
        name: rounded(cell[name]) for name in ("l2", "newton_error", "closed_accuracy", "curvature")
    }
    return singles | {
        "step": cell["step"].tolist(),
        "runs": runs,
        "eigenvalues": rounded(cell["eigenvalues"], 4),
    }


EXPERIMENT = Experiment([in_turn(plan)], summarise, ranges={"steps": (2, 10**7)})
