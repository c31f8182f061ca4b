"""The signs that determine a run's state, computed from what it logs, and their trends."""

from typing import NamedTuple

import numpy as np

from ssl_jax.errors import UserError

# Signs are medians of so many rows: F is noisy, because it remembers 1/(1 - rho) = 1.4 batches.
ROWS = 5

# Standard deviations of Kendall's statistic that count as a trend: by chance one in 40, one-sided.
TREND = 2.0
RECENT = 1 / 3  # the part of the run whose trend counts, but at least 2 ROWS


def content_rank(rank: np.ndarray | float, mean_share: np.ndarray | float) -> np.ndarray:
    """Return the effective rank beside the mean direction (see `diagnosis.state`), at least 1.

    Arguments broadcast.
    """
    m = np.clip(np.asarray(mean_share, np.float64), 1e-9, 1 - 1e-9)
    h = -m * np.log(m) - (1 - m) * np.log(1 - m)
    left = np.maximum(np.log(np.maximum(rank, 1.0)) - h, 0) / (1 - m)
    return np.exp(np.minimum(left, np.log(1e6)))


class Signs(NamedTuple):
    """Signs of a run, arrays (T,). All but `step` are medians of the last ROWS rows."""

    step: np.ndarray  # as logged
    rank: np.ndarray  # effective rank of F
    mean: np.ndarray  # share of the mean direction
    content: np.ndarray  # effective rank beside the mean direction
    top: np.ndarray  # largest eigenvalue of F, divided by that at the start
    loss: np.ndarray
    weights: np.ndarray  # ||W_p||_F / sqrt(D)
    start: float  # the largest eigenvalue of F at the start


NEEDED = ("step", "loss", "relative_spread", "effective_rank", "top_eigenvalue")


def read_signs(history: dict, dim: int, before: int = 0, start: float | None = None) -> Signs:
    """Return the signs of a history, or of the later rows of one.

    Args:
        history: the columns of metrics.csv as arrays (T,), and under "dynamics" the arrays of
            dynamics.npz where there are any. A missing column is a UserError.
        dim: D.
        before: leading rows that only fill the medians of those after them.
        start: the largest eigenvalue of F at the start. None: these rows are the first.

    Returns:
        The signs, arrays (T - before,).
    """
    check_columns(history)
    row = {name: np.asarray(history[name], np.float64) for name in NEEDED}
    weights = history.get("predictor_norm", np.full_like(row["step"], np.nan))
    row["predictor_norm"] = np.asarray(weights, np.float64)
    row["mean"] = mean_share(row["step"], row["relative_spread"], history.get("dynamics") or {})
    names = ("effective_rank", "mean", "top_eigenvalue", "loss", "predictor_norm")
    rank, mean, top, loss, norm = running_median(np.array([row[name] for name in names]), before)
    rank = np.minimum(rank, dim)
    if start is None:
        start = float(top[min(ROWS, len(top)) - 1]) if len(top) else np.nan
    return Signs(
        row["step"][before:],
        rank,
        mean,
        np.minimum(content_rank(rank, mean), dim),
        top / max(start, np.finfo(np.float64).tiny),
        loss,
        norm / np.sqrt(dim),
        start,
    )


def check_columns(history: dict) -> None:
    """Raise a UserError where a column of NEEDED is missing."""
    if lacking := [name for name in NEEDED if name not in history]:
        raise UserError(
            f"history: lacks {', '.join(lacking)}, takes the columns of a pretraining run's "
            "metrics.csv"
        )


def mean_share(step: np.ndarray, spread: np.ndarray, dynamics: dict) -> np.ndarray:
    """Return the share of the mean direction at each step, (T,).

    Args:
        step: training steps, (T,).
        spread: relative spread of the projections at these steps, (T,).
        dynamics: arrays of dynamics.npz, or none.

    Returns:
        The measured share where dynamics.npz covers the step, else 1 - spread².
    """
    by_spread = 1 - np.clip(spread, 0, 1) ** 2
    known = np.isfinite(dynamics.get("mean_share", np.zeros(0)))
    if known.sum() < 2:
        return by_spread
    where, share = dynamics["step"][known], dynamics["mean_share"][known]
    measured = np.interp(step, where, share, left=np.nan, right=np.nan)
    return np.where(np.isnan(measured), by_spread, measured)


def shared_by_views(dynamics: dict) -> np.ndarray | None:
    """Return the correlation c_j of the two views in each mode of F, (D,), or None.

    It is the mean of the last quarter of the records: that of one batch scatters.
    """
    c = dynamics.get("view_correlation", np.zeros((0, 0)))
    known = c[np.isfinite(c).all(axis=1)]
    if not len(known):
        return None
    return np.clip(known[-max(1, round(len(known) / 4)) :].mean(0), 0, 1)


def running_median(values: np.ndarray, before: int = 0, width: int = ROWS) -> np.ndarray:
    """Return the median of the last `width` values up to each, (..., T - before).

    There are fewer values at the start. The median is nan where one of the values is nan.

    Args:
        values: the values in order, (..., T).
        before: leading values that have no median of their own.
        width: how many values a median is of.

    Returns:
        The medians of all values but the first `before`.
    """
    whole = max(before, width - 1)  # from here on a median has all its values
    windows = [values[..., : i + 1] for i in range(before, min(whole, values.shape[-1]))]
    medians = [np.median(window, axis=-1, keepdims=True) for window in windows]
    if values.shape[-1] > whole:
        full = np.lib.stride_tricks.sliding_window_view(values, width, axis=-1)
        medians.append(np.median(full[..., whole - width + 1 :, :], axis=-1))
    return np.concatenate(medians, axis=-1) if medians else values[..., :0]


def trend(values: np.ndarray) -> float:
    """Return Kendall's statistic in standard deviations, above 0 where later values are larger.

    It is 0 for fewer than four values.
    """
    values = thinned(values)
    n = len(values)
    if n < 4:
        return 0.0
    later = np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)]
    return float(later.sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def latched(enter: np.ndarray, stay: np.ndarray, inside: bool = False) -> np.ndarray:
    """Return True from where `enter` is True, for as long as `stay` is.

    `inside` is the value before the first.
    """
    held = np.zeros(len(enter), bool)
    for i in range(len(enter)):
        held[i] = inside = bool(enter[i] or (inside and stay[i]))
    return held


def recent(values: np.ndarray) -> np.ndarray:
    """Return the part of the values whose trend counts."""
    return values[-recent_rows(len(values)) :]


def recent_rows(rows: int) -> int:
    """Return how many of so many rows are the recent part, or would be of a longer run."""
    return max(2 * ROWS, int(RECENT * rows))


def thinned(values: np.ndarray) -> np.ndarray:
    """Return at most 60 of the values at equal distances: enough for a trend, and cheap."""
    return values[:: max(1, -(-len(values) // 60))]
