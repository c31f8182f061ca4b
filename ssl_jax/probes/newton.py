"""Linear probes by Newton's method, where the Hessian is small enough to store and factorise.

Features are (N, F), labels (N,) integers in [0, num_classes). All is done in float64: near the
optimum a Newton step is a difference of nearly equal numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssl_jax.errors import UserError, nearest
from ssl_jax.probes.features import check_examples
from ssl_jax.probes.linear import ProbeResult, standardise

LARGEST = 6000  # unknowns: a Hessian of 288 MB, and some seconds to factorise it


def newton_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    l2: float,
    steps: int,
    loss: str = "softmax",
) -> ProbeResult:
    """Run multinomial logistic regression of standardised features, or ridge regression.

    Damped Newton steps from zero minimise mean loss + l2 / 2 |kernel|^2. The bias is not penalised.
    Ridge regression reaches its optimum in the first step.

    Args:
        train_x: features (N, F).
        train_y: labels (N,), integers.
        test_x: features (M, F).
        test_y: labels (M,), integers.
        num_classes: number of classes.
        l2: the penalty, above 0.
        steps: number of Newton steps, at least 1.
        loss: "softmax" (logistic regression) or "squared" (ridge).

    Returns:
        Accuracies and losses (without the penalty) after each step.

    Raises:
        UserError: an argument is unknown or out of its range, a feature is not finite, or the
            Hessian is too large.
    """
    check_examples("train", train_x, train_y, num_classes)
    check_examples("test", test_x, test_y, num_classes)
    check_settings(train_x.shape[1], num_classes, l2, steps, loss)
    train_x, test_x = (with_ones(x) for x in standardise(train_x.astype(np.float64), test_x))
    problem = Problem(train_x, np.eye(num_classes)[train_y], l2, SCORE_LOSSES[loss])
    weights, accuracy, losses = np.zeros((train_x.shape[1], num_classes)), [], []
    for _ in range(steps):
        weights = newton_step(problem, weights)
        accuracy.append(float(np.mean((test_x @ weights).argmax(axis=1) == test_y)))
        losses.append(objective(problem._replace(l2=0.0), weights))
    return ProbeResult(accuracy[-1], max(accuracy), accuracy, losses)


def check_settings(features: int, num_classes: int, l2: float, steps: int, loss: str) -> None:
    """Raise UserError where Newton's method cannot run with these settings.

    Args:
        features: number of features, F.
        num_classes: number of classes.
        l2: the penalty, above 0.
        steps: number of Newton steps, at least 1.
        loss: a key of `SCORE_LOSSES`.
    """
    if loss not in SCORE_LOSSES:
        raise UserError(f"loss of the Newton probe: got {loss!r}, {nearest(loss, SCORE_LOSSES)}")
    if not l2 > 0:
        raise UserError(f"l2 of the Newton probe: got {l2}, takes a number above 0")
    if steps < 1:
        raise UserError(f"steps of the Newton probe: got {steps}, takes at least 1")
    unknowns = (features + 1) * num_classes
    if unknowns > LARGEST:
        size = f"({features} features + 1) x {num_classes} classes = {unknowns} unknowns"
        raise UserError(
            f"Newton probe: got {size}, takes at most {LARGEST}: its Hessian is that number squared"
        )


def with_ones(x: np.ndarray) -> np.ndarray:
    """Append a column of ones, (N, F) -> (N, F + 1): the last row of the weights is the bias."""
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


# --- Losses of the scores s = x W, one example: value, gradient s' and curvature s'' --------------


class ScoreLoss(NamedTuple):
    """A loss of scores (N, K) for one-hot targets (N, K)."""

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]  # scores, target -> (N,)
    # scores -> prediction (N, K). The gradient by the scores is prediction - target.
    predict: Callable[[np.ndarray], np.ndarray]
    # prediction, k, l -> (N,): the second derivative by s_k and s_l
    curvature: Callable[[np.ndarray, int, int], np.ndarray]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _cross_entropy(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    top = scores.max(axis=1)
    return np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top - np.sum(scores * target, axis=1)


SCORE_LOSSES = {
    "softmax": ScoreLoss(_cross_entropy, _softmax, lambda p, k, m: p[:, k] * ((k == m) - p[:, m])),
    "squared": ScoreLoss(
        lambda scores, target: 0.5 * np.sum((scores - target) ** 2, axis=1),
        lambda scores: scores,
        lambda p, k, m: np.full(len(p), float(k == m)),
    ),
}


# --- Newton's method ------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Minimise mean loss(x W, target) + l2 / 2 |W without its last row|^2 over W (F + 1, K)."""

    x: np.ndarray  # (N, F + 1), the last column ones
    target: np.ndarray  # (N, K)
    l2: float  # the penalty
    loss: ScoreLoss  # of the scores x W


def objective(problem: Problem, weights: np.ndarray) -> float:
    """Compute the mean loss plus the penalty at weights (F + 1, K)."""
    value = problem.loss.value(problem.x @ weights, problem.target).mean()
    return float(value + problem.l2 / 2 * np.sum(weights[:-1] ** 2))


def derivatives(problem: Problem, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the gradient (F + 1, K) and the Hessian (K, F + 1, K, F + 1) of the objective.

    The Hessian is x^T diag(curvature) x / N for each pair of classes, plus the penalty's diagonal.
    """
    x, target, l2, loss = problem
    (size, classes), predicted = weights.shape, loss.predict(x @ weights)
    penalty = l2 * (np.arange(size) < size - 1)
    gradient = x.T @ (predicted - target) / len(x) + penalty[:, None] * weights
    hessian = np.empty((classes, size, classes, size))
    for k in range(classes):
        for m in range(k + 1):
            block = x.T @ (loss.curvature(predicted, k, m)[:, None] * x) / len(x)
            hessian[k, :, m] = hessian[m, :, k] = block + (k == m) * np.diag(penalty)
    return gradient, hessian


def newton_step(problem: Problem, weights: np.ndarray) -> np.ndarray:
    """Return W - t H^-1 g for weights W (F + 1, K).

    t is the first of 1, 1/2, 1/4, ... that lowers the objective by t g H^-1 g / 10^4 (Armijo).

    A number added to the scores of all classes does not change a softmax. So its Hessian is
    singular along the biases' mean. The gradient has no component there. 1e-10 times the mean
    diagonal is added to the diagonal, so that Cholesky does not fail.
    """
    # As the import of scikit-learn, this one waits until it is needed.
    from scipy.linalg import cho_factor, cho_solve

    gradient, hessian = derivatives(problem, weights)
    hessian = hessian.reshape(weights.size, weights.size)
    hessian[np.diag_indices(weights.size)] += 1e-10 * hessian.diagonal().mean()
    factor = cho_factor(hessian, lower=True, overwrite_a=True, check_finite=False)
    direction = cho_solve(factor, gradient.T.ravel()).reshape(weights.T.shape).T
    before, slope = objective(problem, weights), np.sum(gradient * direction)
    for halvings in range(30):
        length = 0.5**halvings
        moved = weights - length * direction
        if objective(problem, moved) <= before - 1e-4 * length * slope:
            return moved
    return weights  # at the optimum: the objective does not go lower in float64
