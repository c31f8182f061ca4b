"""The signs by which a state is told, from what a run logs, and their trends."""

from typing import NamedTuple

import numpy as np

from ssl_jax.errors import UserError

# A single batch's F is noisy (it remembers 1/(1 - rho) = 1.4 batches): signs are medians of so many rows.
ROWS = 5

TREND = 2.0  # standard deviations of Kendall's statistic that count as a trend: one in 40 by chance, one-sided
RECENT = 1 / 3  # the part of the run whose trend is looked at, but at least 2 ROWS


def content_rank(rank, mean_share):
    """Effective rank beside the mean direction (see `diagnosis.state`), from 1; arrays broadcast."""
    m = np.clip(np.asarray(mean_share, np.float64), 1e-9, 1 - 1e-9)
    h = -m * np.log(m) - (1 - m) * np.log(1 - m)
    left = np.maximum(np.log(np.maximum(rank, 1.0)) - h, 0) / (1 - m)
    return np.exp(np.minimum(left, np.log(1e6)))


class Signs(NamedTuple):
    """Arrays (T,): step as logged; the rest medians of the last ROWS rows. top is relative to the start of the run."""

    step: np.ndarray
    rank: np.ndarray
    mean: np.ndarray
    content: np.ndarray
    top: np.ndarray
    loss: np.ndarray
    weights: np.ndarray  # ||W_p||_F / sqrt(D)
    start: float  # the largest eigenvalue at the start


NEEDED = ("step", "loss", "relative_spread", "effective_rank", "top_eigenvalue")


def read_signs(history: dict, dim: int) -> Signs:
    """history: columns of metrics.csv, arrays (T,), and under "dynamics" the arrays of dynamics.npz, if there are."""
    if lacking := [name for name in NEEDED if name not in history]:
        raise UserError(f"history: lacks {', '.join(lacking)}, takes the columns of a pretraining run's metrics.csv")
    row = {name: np.asarray(history[name], np.float64) for name in NEEDED}
    smooth = {name: running_median(values) for name, values in row.items()}
    mean = running_median(mean_share(row["step"], row["relative_spread"], history.get("dynamics") or {}))
    weights = np.asarray(history.get("predictor_norm", np.full_like(row["step"], np.nan)), np.float64)
    rank, top = np.minimum(smooth["effective_rank"], dim), smooth["top_eigenvalue"]
    start = float(top[min(ROWS, len(top)) - 1]) if len(top) else np.nan
    return Signs(
        row["step"],
        rank,
        mean,
        np.minimum(content_rank(rank, mean), dim),
        top / max(start, np.finfo(np.float64).tiny),
        smooth["loss"],
        running_median(weights) / np.sqrt(dim),
        start,
    )


def mean_share(step: np.ndarray, spread: np.ndarray, dynamics: dict) -> np.ndarray:
    """Of the mean direction at each `step`: measured where dynamics.npz reaches, else by the spread."""
    by_spread = 1 - np.clip(spread, 0, 1) ** 2
    known = np.isfinite(dynamics.get("mean_share", np.zeros(0)))
    if known.sum() < 2:
        return by_spread
    where, share = dynamics["step"][known], dynamics["mean_share"][known]
    measured = np.interp(step, where, share, left=np.nan, right=np.nan)
    return np.where(np.isnan(measured), by_spread, measured)


def running_median(values: np.ndarray, width: int = ROWS) -> np.ndarray:
    """(T,) median of the last `width` values up to each, of fewer at the start; nan where one of them is nan."""
    if len(values) == 0:
        return values
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    first = [np.median(values[: i + 1]) for i in range(min(width - 1, len(values)))]
    return np.concatenate([first, np.median(windows[width - 1 :], axis=1)])


def trend(values: np.ndarray) -> float:
    """Kendall's statistic in standard deviations: above 0 where later values are larger; 0 of fewer than four."""
    values = values[:: max(1, len(values) // 60)]  # enough to see a trend by, and cheap
    n = len(values)
    if n < 4:
        return 0.0
    later = np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)]
    return float(later.sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def latched(enter: np.ndarray, stay: np.ndarray) -> np.ndarray:
    """True from where `enter` is, for as long as `stay` is."""
    held, inside = np.zeros(len(enter), bool), False
    for i in range(len(enter)):
        held[i] = inside = bool(enter[i] or (inside and stay[i]))
    return held


def recent(values: np.ndarray) -> np.ndarray:
    return values[-max(2 * ROWS, int(RECENT * len(values))) :]
