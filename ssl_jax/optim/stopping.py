"""Rules that watch a metric on the validation split: when to lower the learning rate, when to stop.

Both are pure functions of the metric's whole history, one value per evaluation, oldest first. So a
resumed run needs only its metrics. NaN never counts as better.
"""

import math
from collections.abc import Callable, Sequence

from ssl_jax.errors import UserError, nearest


def plateau_scale(
    history: Sequence[float],
    *,
    factor: float,
    patience: int,
    threshold: float = 1e-4,
    cooldown: int = 0,
    smallest: float = 0.0,
    better: str = "higher",
) -> float:
    """Return the factor of the learning rate: the product of all reductions so far.

    This is PyTorch's ReduceLROnPlateau with an absolute threshold. Unlike there, a reduction of
    less than 1e-8 is made.

    Args:
        history: the metric, one value per evaluation, oldest first.
        factor: what one reduction multiplies the rate by, in (0, 1).
        patience: a reduction follows more than this many evaluations in a row without improvement.
        threshold: an improvement beats the best value so far by more than this.
        cooldown: number of evaluations after a reduction that are not counted.
        smallest: lower bound of the result, a fraction of the scheduled rate in [0, 1].
        better: "higher" or "lower".

    Returns:
        A number in [smallest, 1].

    Raises:
        UserError: an argument is out of its range.
    """
    fields = {"factor": factor, "patience": patience, "threshold": threshold, "cooldown": cooldown}
    _check("plateau", better, smallest=smallest, **fields)
    scale, bad, cooling = 1.0, 0, 0
    for improved in improvements(history, threshold, better):
        bad = 0 if improved or cooling else bad + 1
        cooling = max(cooling - 1, 0)
        if bad > patience:
            scale, bad, cooling = max(scale * factor, smallest), 0, cooldown
    return scale


def should_stop(
    history: Sequence[float], *, patience: int, threshold: float = 0.0, better: str = "higher"
) -> bool:
    """Return whether the last `patience` evaluations brought no improvement.

    Args:
        history: the metric, one value per evaluation, oldest first.
        patience: number of evaluations in a row, at least 1.
        threshold: an improvement beats the best value so far by more than this.
        better: "higher" or "lower".

    Returns:
        True where training is to stop.

    Raises:
        UserError: an argument is out of its range.
    """
    _check("stopping", better, patience=patience, threshold=threshold)
    if patience < 1:
        raise UserError(
            f"stopping.patience: got {patience}, takes a number of evaluations, at least 1"
        )
    bad = 0
    for improved in improvements(history, threshold, better):
        bad = 0 if improved else bad + 1
    return bad >= patience


def improvements(history: Sequence[float], threshold: float, better: str = "higher") -> list[bool]:
    """Return for each value whether it improves on the best so far.

    Args:
        history: the metric, one value per evaluation, oldest first.
        threshold: an improvement beats the best by more than this. Only then the best changes.
        better: "higher" or "lower".

    Returns:
        One bool per value.

    >>> improvements([0.5, 0.55, 0.7, 0.6], threshold=0.1)
    [True, False, True, False]
    """
    sign = 1 if better == "higher" else -1
    best = -math.inf
    improved: list[bool] = []
    for value in history:
        improved.append(sign * value > best + threshold)
        best = sign * value if improved[-1] else best
    return improved


# The allowed range of each field, in words and as a test.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "factor": ("a number in (0, 1)", lambda x: 0 < x < 1),
    "patience": ("a number of evaluations, at least 0", lambda x: x >= 0),
    "threshold": ("a number of at least 0", lambda x: x >= 0),
    "cooldown": ("a number of evaluations, at least 0", lambda x: x >= 0),
    "smallest": ("a number in [0, 1]", lambda x: 0 <= x <= 1),
}


def _check(section: str, better: str, **fields: float) -> None:
    """Raise UserError for the first field that is out of its range."""
    if better not in ("higher", "lower"):
        raise UserError(f"{section}.better: got {better!r}, {nearest(better, ['higher', 'lower'])}")
    for field, value in fields.items():
        words, fits = _RANGES[field]
        if not fits(value):
            raise UserError(f"{section}.{field}: got {value}, takes {words}")
