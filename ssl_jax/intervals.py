"""What several seeds say together."""

from typing import Any

import numpy as np


def student(values: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean over the seeds, and the half-width of Student's 95% interval; None for a single seed."""
    from scipy.stats import t  # half a second of import, at the end of an experiment

    count = values.shape[axis]
    mean = values.mean(axis=axis)
    if count < 2:
        return mean, None
    return mean, t.ppf(0.975, count - 1) * values.std(axis=axis, ddof=1) / count**0.5


def mean_and_interval(values: np.ndarray, axis: int = 0) -> dict[str, list | float | None]:
    """{"mean", "interval"} as `student` has them, rounded to five digits, so that a result stays readable."""
    mean, width = student(values, axis)
    return {"mean": rounded(mean), "interval": None if width is None else rounded(width)}


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """{"mean", "interval"} of a - b (S,), whose members share seeds."""
    mean, width = student(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return {"mean": float(mean), "interval": None if width is None else float(width)}


def rounded(values: Any, digits: int = 5) -> Any:
    """Numbers, in nested lists as the array has them, with so many digits; what is not finite becomes None."""
    if np.ndim(values):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if np.isfinite(values) else None
