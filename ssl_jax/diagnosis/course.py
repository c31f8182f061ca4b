"""The course of a run: its signs and the state that each row shows, grown row by row.

A row costs the same however many came before it: medians look back ROWS rows, an alarm one, and
what else a verdict asks of the past is kept as it goes.
"""

import numpy as np

from ssl_jax.diagnosis.facts import Facts
from ssl_jax.diagnosis.rows import ALARMS, Latches, states_of_rows
from ssl_jax.diagnosis.signs import NEEDED, ROWS, Signs, check_columns, read_signs

RAW = (*NEEDED, "predictor_norm")
KEPT = ("step", "rank", "mean", "content", "top", "loss", "weights")  # arrays of `Signs`


class Course:
    """A run's rows so far.

    Attributes:
        facts: the run's configuration.
        dynamics: arrays of dynamics.npz, or none.
        bad: the first row with a number that is not finite, from which on no row is read; or None.
        turn: the row since which all are healthy, or none is.
        same: the row since which all show the same state.
        best_rank: the largest effective rank so far.
        best_mean: the smallest share of the mean direction so far.
    """

    def __init__(self, facts: Facts, dynamics: dict[str, np.ndarray] | None = None) -> None:
        self.facts, self.dynamics = facts, dynamics or {}
        self.bad: int | None = None
        self.turn, self.same = 0, 0
        self.best_rank, self.best_mean = 1.0, 1.0
        self._raw = Table(len(RAW), np.float64)
        self._signs = Table(len(KEPT), np.float64)
        self._kinds = Table(1, "<U24")
        self._alarms = Table(len(ALARMS), np.bool_)
        self._start = np.nan

    def __len__(self) -> int:
        """Return how many rows have been read, the first bad one not among them."""
        return self._signs.size

    @property
    def signs(self) -> Signs:
        """Return the signs of all rows; views, which the next `extend` may outdate."""
        return Signs(*self._signs.columns, start=self._start)

    @property
    def kinds(self) -> np.ndarray:
        """Return the state that each row shows by itself, (T,)."""
        return self._kinds.columns[0]

    def bad_row(self) -> dict[str, float]:
        """Return the first row with a number that is not finite."""
        return dict(zip(RAW, self._raw.columns[:, self.bad].tolist(), strict=True))

    def extend(self, columns: dict[str, np.ndarray]) -> None:
        """Read more rows: the columns of metrics.csv, arrays (N,)."""
        if self.bad is not None:
            return
        check_columns(columns)
        count = len(columns["step"])
        blank = np.full(count, np.nan)
        known = {"predictor_norm": blank} | columns
        more = np.array([known[name] for name in RAW], np.float64)
        finite = np.isfinite(more[: len(NEEDED)]).all(axis=0)
        # The eigenvalue at the start is that of the first ROWS rows: until then, all are read anew.
        begin = self._raw.size if self._raw.size >= ROWS else 0
        self._raw.put(self._raw.size, more)
        if not finite.all():
            self.bad = self._raw.size - count + int(np.argmin(finite))
        self._read(begin, self._raw.size if self.bad is None else self.bad)

    def _read(self, begin: int, end: int) -> None:
        """Compute signs and states of the rows from `begin` to `end`."""
        if end <= begin:
            return
        before = min(begin, ROWS - 1)
        rows = dict(zip(RAW, self._raw.columns[:, begin - before : end], strict=True))
        start = self._start if begin else None
        rows["dynamics"] = self.dynamics  # pyright: ignore[reportArgumentType]
        signs = read_signs(rows, self.facts.dim, before, start)
        self._start = signs.start
        self._signs.put(begin, np.array(signs[: len(KEPT)]))
        latches = Latches(*self._alarms.columns[:, begin - 1].tolist()) if begin else Latches()
        first = float(self._signs.columns[KEPT.index("loss"), 0])
        kinds, alarms = states_of_rows(signs, self.dynamics, self.facts, first, latches)
        self._kinds.put(begin, kinds[None])
        self._alarms.put(begin, alarms)
        self._keep(begin, signs)

    def _keep(self, begin: int, signs: Signs) -> None:
        """Bring up to date what is kept of all rows, of which those from `begin` on are new."""
        if begin == 0:
            self.turn, self.same, self.best_rank, self.best_mean = 0, 0, 1.0, 1.0
        self.best_rank = max(self.best_rank, float(signs.rank.max()))
        self.best_mean = min(self.best_mean, float(signs.mean.min()))
        last = max(begin - 1, 0)
        kinds = self.kinds[last:]
        self.same = last_change(kinds, last, self.same)
        self.turn = last_change(kinds != "healthy", last, self.turn)


def last_change(values: np.ndarray, first: int, before: int) -> int:
    """Return the last row whose value differs from the one before it.

    Args:
        values: the values of the rows from `first` on.
        first: the row of the first of them.
        before: the answer for that row, which is that of all where none differs.

    Returns:
        The row.
    """
    changes = np.flatnonzero(values[1:] != values[:-1])
    return first + int(changes[-1]) + 1 if len(changes) else before


class Table:
    """Columns that grow by rows at the end, each at a constant cost on average."""

    def __init__(self, columns: int, dtype: type | str) -> None:
        self._space = np.empty((columns, 64), dtype)
        self.size = 0

    @property
    def columns(self) -> np.ndarray:
        """Return the columns, (columns, size), a view."""
        return self._space[:, : self.size]

    def put(self, begin: int, rows: np.ndarray) -> None:
        """Write rows (columns, N) from row `begin` on; what was there from it on is gone."""
        self.size = begin + rows.shape[1]
        while self.size > self._space.shape[1]:
            self._space = np.concatenate([self._space, np.empty_like(self._space)], axis=1)
        self._space[:, begin : self.size] = rows
