"""Rules that watch a metric on the validation split: when to lower the learning rate, when to stop.

Both are pure functions of the metric's whole history, one value an evaluation, oldest first: a resumed run needs
nothing but what it has written down. A value that is not a number never counts as better.
"""

import math
from collections.abc import Sequence

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
    """What the learning rate is to be multiplied by: the product of all reductions so far.

    After more than `patience` evaluations in a row that are not better than the best by `threshold`, the rate is
    multiplied by `factor`, down to `smallest` of its schedule; the `cooldown` evaluations after that are not counted.
    PyTorch's ReduceLROnPlateau with an absolute threshold, without its refusal of steps below 1e-8.
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


def should_stop(history: Sequence[float], *, patience: int, threshold: float = 0.0, better: str = "higher") -> bool:
    """True once `patience` evaluations in a row were not better than the best before them by more than `threshold`."""
    _check("stopping", better, patience=patience, threshold=threshold)
    if patience < 1:
        raise UserError(f"stopping.patience: got {patience}, takes a number of evaluations, at least 1")
    bad = 0
    for improved in improvements(history, threshold, better):
        bad = 0 if improved else bad + 1
    return bad >= patience


def improvements(history: Sequence[float], threshold: float, better: str = "higher") -> list[bool]:
    """For each value, whether it beats the best so far by more than `threshold`; the best moves only when it does.

    >>> improvements([0.5, 0.55, 0.7, 0.6], threshold=0.1)
    [True, False, True, False]
    """
    sign = 1 if better == "higher" else -1
    best, found = -math.inf, []
    for value in history:
        found.append(sign * value > best + threshold)
        best = sign * value if found[-1] else best
    return found


_TAKES = {
    "factor": ("a number in (0, 1)", lambda x: 0 < x < 1),
    "patience": ("a number of evaluations, at least 0", lambda x: x >= 0),
    "threshold": ("a number of at least 0", lambda x: x >= 0),
    "cooldown": ("a number of evaluations, at least 0", lambda x: x >= 0),
    "smallest": ("a number in [0, 1]", lambda x: 0 <= x <= 1),
}


def _check(section: str, better: str, **fields: float) -> None:
    if better not in ("higher", "lower"):
        raise UserError(f"{section}.better: got {better!r}, {nearest(better, ['higher', 'lower'])}")
    for field, value in fields.items():
        words, fits = _TAKES[field]
        if not fits(value):
            raise UserError(f"{section}.{field}: got {value}, takes {words}")
