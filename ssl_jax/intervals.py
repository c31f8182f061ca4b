"""Means over seeds and their confidence intervals."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """Mean over seeds, and its 95% interval."""

    mean: float
    width: float | None  # half-width of the interval; None for one seed
    count: int  # number of seeds
    digits: int = 2  # behind the point, as text
    signed: bool = False  # whether a positive mean has a plus, as text

    def __str__(self) -> str:
        width = "" if self.width is None else f" ± {self.width:.{self.digits}f}"
        return f"{self.mean:{'+' if self.signed else ''}.{self.digits}f}{width}"


def estimate(values: Iterable[float], digits: int = 2, signed: bool = False) -> Estimate:
    """Return the mean of the values with Student's 95% interval.

    Args:
        values: one for each seed, at least one.
        digits: behind the point, as text.
        signed: whether a positive mean has a plus, as text.

    Returns:
        The estimate, in the values' units.
    """
    numbers = np.array(list(values), np.float64)
    with np.errstate(over="ignore"):  # foreign numbers may be any
        mean, width = student_interval(numbers)
    half = None if width is None else float(width)
    return Estimate(float(mean), half, len(numbers), digits, signed)


def student_interval(values: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean over the seeds on `axis` and the half-width of Student's 95% interval.

    The half-width of a single seed is None.
    """
    from scipy.stats import t  # here, because importing it takes half a second

    count = values.shape[axis]
    mean = values.mean(axis=axis)
    if count < 2:
        return mean, None
    return mean, t.ppf(0.975, count - 1) * values.std(axis=axis, ddof=1) / count**0.5


def mean_and_interval(values: np.ndarray, axis: int = 0) -> dict[str, list | float | None]:
    """Return {"mean", "interval"} as `student_interval` computes them, rounded to five digits."""
    mean, width = student_interval(values, axis)
    return {"mean": rounded(mean), "interval": None if width is None else rounded(width)}


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Return {"mean", "interval"} of the differences a - b (S,) of pairs that share their seeds."""
    mean, width = student_interval(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return {"mean": float(mean), "interval": None if width is None else float(width)}


def rounded(values: Any, digits: int = 5) -> Any:
    """Return the numbers of an array as nested lists, rounded to so many significant digits.

    A number that is not finite becomes None.
    """
    if np.ndim(values):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if np.isfinite(values) else None
