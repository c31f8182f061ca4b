"""The replication's claims, each with the cells that it rests on and its test."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssl_jax.intervals import Estimate
from ssl_jax.reports.replication.results import Cells, Runs, accuracy, final, state

HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not", "undecided", "not tested"

Evaluate = Callable[[Cells], tuple[str, list[str]]]


class Claim(NamedTuple):
    """A claim of the replication."""

    statement: str  # the claim, one sentence
    source: str  # table or figure
    # evaluate(cells) -> (verdict, evidence: one line for each comparison)
    evaluate: Evaluate


def greater(*pairs: tuple[tuple[str, str], tuple[str, str]]) -> Evaluate:
    """Return the test that each first cell is more accurate than its second."""

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        known = [(a, b) for a, b in pairs if cells.get(a) and cells.get(b)]
        differences = [difference(cells[a], cells[b]) for a, b in known]
        lines = [f"{a[1]} - {b[1]}: {d}" for (a, b), d in zip(known, differences, strict=True)]
        return combine_verdicts([_sign(d) for d in differences]), lines

    return evaluate


def difference(ours: Runs, theirs: Runs) -> Estimate:
    """Return the difference of mean accuracies, in points, with Welch's 95% interval.

    Welch's test assumes independent noise: cells may share seeds, but not their noise.
    """
    from scipy.stats import ttest_ind  # half a second of import

    a, b = ([100 * run["linear_accuracy"] for run in runs] for runs in (ours, theirs))
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2 or np.ptp(a) == np.ptp(b) == 0:
        return Estimate(mean, None, min(len(a), len(b)))
    interval = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return Estimate(mean, float(interval.high - interval.low) / 2, min(len(a), len(b)))


def _sign(d: Estimate) -> str:
    if d.width is None or abs(d.mean) <= d.width:
        return OPEN
    return HOLDS if d.mean > 0 else FAILS


def combine_verdicts(verdicts: list[str]) -> str:
    """Return the verdict on several comparisons.

    One that fails refutes the claim. Without one, a comparison that is open leaves it open.
    """
    if not verdicts:
        return UNTESTED
    return next(v for v in (FAILS, OPEN, HOLDS) if v in verdicts)


def no_better(a: tuple[str, str], b: tuple[str, str]) -> Evaluate:
    """Return the test that a is less accurate than b.

    The verdict is open where the difference is within its interval.
    """

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        if not (cells.get(a) and cells.get(b)):
            return UNTESTED, []
        d = difference(cells[a], cells[b])
        return {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[_sign(d)], [f"{a[1]} - {b[1]}: {d}"]

    return evaluate


def rescued(cell: tuple[str, str], without: tuple[str, str]) -> Evaluate:
    """Return the test that a cell is more accurate than `without` and no run of it collapses."""
    compare = greater((cell, without))

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        verdict, lines = compare(cells)
        runs = cells.get(cell, [])
        down = any(run.get("collapsed") for run in runs)
        return FAILS if down and verdict != UNTESTED else verdict, [
            *lines,
            f"{cell[1]}: {state(runs)}",
        ] if runs else []

    return evaluate


def collapses(cell: tuple[str, str]) -> Evaluate:
    """Return the test that a cell's runs collapse.

    Their own diagnosis is a collapse, and their accuracy is below the untrained encoder's.
    """

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        runs = cells.get(cell)
        if not runs:
            return UNTESTED, []
        line = f"{cell[1]}: {state(runs)}; linear {accuracy(runs)}"
        if all("random_init_linear_accuracy" in run for run in runs):
            line += f", untrained {accuracy(runs, 'random_init_linear_accuracy')}"
            below = [run["linear_accuracy"] < run["random_init_linear_accuracy"] for run in runs]
        else:
            below = [True for _ in runs]
        down = [run.get("collapsed", False) and low for run, low in zip(runs, below, strict=True)]
        return HOLDS if all(down) else FAILS if not any(down) else OPEN, [line]

    return evaluate


def recorded(runs: Runs, when: str, name: str) -> np.ndarray:
    """Return what dynamics.npz held in its first or last record.

    Args:
        runs: the runs of a cell.
        when: "first" or "last".
        name: name of the array.

    Returns:
        A row for each run that recorded it.
    """
    values = [final(run, name, when) for run in runs]
    return np.array([value for value in values if value is not None], np.float64)


def has_both(run: dict, name: str) -> bool:
    """Return whether the first and the last record have an array."""
    return None not in (final(run, name, "first"), final(run, name))


def symmetric(published: dict[tuple[str, str], float]) -> Evaluate:
    """Return the test that the asymmetry falls to less than half of its first value.

    The asymmetry is sum |W - Wᵀ| / sum |W|. `published` has the last published value of each cell.
    """

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        lines, verdicts = [], []
        for cell, theirs in published.items():
            first, last = (
                recorded(
                    [run for run in cells.get(cell, []) if has_both(run, "asymmetry_l1")],
                    when,
                    "asymmetry_l1",
                )
                for when in ("first", "last")
            )
            if len(last):
                lines.append(
                    f"{cell[1]}: {first.mean():.2f} -> {last.mean():.2f} (published: 1.41 -> "
                    f"{theirs:g})"
                )
                verdicts.append(HOLDS if np.all(last < 0.5 * first) else FAILS)
        return combine_verdicts(verdicts), lines

    return evaluate


def aligned(published: dict[tuple[str, str], int]) -> Evaluate:
    """Return the test that the share of aligned modes is at least half the published share.

    A mode is aligned at the end with an alignment above .95. `published` counts such modes, of 128.
    """

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        lines, verdicts = [], []
        for cell, theirs in published.items():
            alignment = recorded(cells.get(cell, []), "last", "alignment")
            if len(alignment):
                share = np.mean(alignment > 0.95, axis=1)
                text = f"{100 * share.mean():.0f}% of {alignment.shape[1]} modes above .95"
                lines.append(f"{cell[1]}: {text} (published: {theirs / 1.28:.0f}% of 128)")
                verdicts.append(HOLDS if np.all(share >= theirs / 256) else FAILS)
        return combine_verdicts(verdicts), lines

    return evaluate


def cell(sweep: str) -> Callable[[str], tuple[str, str]]:
    """Return a function from a cell's name to its key in the table."""
    return lambda name: (f"table{sweep}", name)


_1, _2, _3 = cell("1"), cell("2"), cell("3")
CLAIMS = (
    Claim(
        "A target average helps",
        "tables 1, 2",
        greater(
            (_1("byol_sym"), _1("simsiam_sym")),
            (_1("byol"), _1("simsiam")),
            (_2("linear"), _2("linear_noema")),
            (_2("directpred"), _2("directpred_noema")),
        ),
    ),
    Claim(
        "BYOL with a symmetric predictor is no worse",
        "table 1",
        no_better(_1("byol"), _1("byol_sym")),
    ),
    Claim("SimSiam with a symmetric predictor collapses", "table 1", collapses(_1("simsiam_sym"))),
    Claim(
        "Weight decay of a fast predictor rescues it",
        "table 3",
        rescued(_3("simsiam_sym_wdp"), _3("simsiam_sym_nowd")),
    ),
    Claim(
        "Without any decay it collapses even with a fast predictor",
        "table 3",
        collapses(_3("simsiam_sym_nowd")),
    ),
    Claim(
        "No decay at all is worse than decay of the predictor",
        "table 3",
        greater(
            *(
                (_3(f"{name}_wdp"), _3(f"{name}_nowd"))
                for name in ("byol_sym", "byol", "simsiam_sym", "simsiam")
            )
        ),
    ),
    Claim(
        "DirectPred beats a one-layer predictor trained by SGD",
        "table 2",
        greater((_2("directpred"), _2("linear"))),
    ),
    Claim(
        "Setting it every 5 steps only is no better",
        "table 2",
        no_better(_2("directpred5"), _2("directpred")),
    ),
    Claim(
        "The learned predictor becomes symmetric by itself",
        "figure 4",
        symmetric({_1("byol"): 0.163, _1("simsiam"): 0.209}),
    ),
    Claim(
        "Eigenspaces of predictor and correlation align",
        "figure 3",
        aligned({_1("byol"): 57, _1("byol_sym"): 100, _1("simsiam"): 25}),
    ),
)


def evaluate_claims(cells: Cells) -> list[tuple[Claim, str, list[str]]]:
    """Return every claim with its verdict and evidence."""
    return [(claim, *claim.evaluate(cells)) for claim in CLAIMS]
