"""The replication's claims, each with the cells that it rests on and its test."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssl_jax.intervals import Estimate
from ssl_jax.reports.compare.runs import Group, Run, estimate, states, values
from ssl_jax.reports.replication.results import Cells, final

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
        known = [(a, b) for a, b in pairs if a in cells and b in cells]
        differences = [difference(cells[a], cells[b]) for a, b in known]
        lines = [f"{a[1]} - {b[1]}: {d}" for (a, b), d in zip(known, differences, strict=True)]
        return combine_verdicts([_sign(d) for d in differences]), lines

    return evaluate


def difference(ours: Group, theirs: Group) -> Estimate:
    """Return the difference of mean accuracies, in points, with Welch's 95% interval.

    Welch's test assumes independent noise: cells may share seeds, but not their noise.
    """
    from scipy.stats import ttest_ind  # half a second of import

    a, b = (list(values(one, "linear_accuracy").values()) for one in (ours, theirs))
    mean, width, count = float(np.mean(a) - np.mean(b)), None, min(len(a), len(b))
    if count > 1 and not np.ptp(a) == np.ptp(b) == 0:
        interval = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        width = float(interval.high - interval.low) / 2
    return Estimate(mean, width, count, signed=True)


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

    compare = greater((a, b))

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        verdict, lines = compare(cells)
        return {HOLDS: FAILS, FAILS: HOLDS}.get(verdict, verdict), lines

    return evaluate


def rescued(cell: tuple[str, str], without: tuple[str, str]) -> Evaluate:
    """Return the test that a cell is more accurate than `without` and no run of it collapses."""
    compare = greater((cell, without))

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        verdict, lines = compare(cells)
        if cell not in cells:
            return verdict, []
        down = any(run.result.get("collapsed") for run in cells[cell].runs)
        verdict = FAILS if down and verdict != UNTESTED else verdict
        return verdict, [*lines, f"{cell[1]}: {states(cells[cell])}"]

    return evaluate


def collapses(cell: tuple[str, str]) -> Evaluate:
    """Return the test that a cell's runs collapse.

    Their own diagnosis is a collapse, and their accuracy is below the untrained encoder's.
    """

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        if cell not in cells:
            return UNTESTED, []
        one, results = cells[cell], [run.result for run in cells[cell].runs]
        line = f"{cell[1]}: {states(one)}; linear {estimate(one, 'linear_accuracy')}"
        untrained = estimate(one, "random_init_linear_accuracy")
        line += f", untrained {untrained}" if untrained else ""
        down = [
            result.get("collapsed", False)
            and result["linear_accuracy"] < result.get("random_init_linear_accuracy", np.inf)
            for result in results
        ]
        return HOLDS if all(down) else FAILS if not any(down) else OPEN, [line]

    return evaluate


def recorded(runs: list[Run], when: str, name: str) -> np.ndarray:
    """Return what dynamics.npz held in its first or last record.

    Args:
        runs: of a cell.
        when: "first" or "last".
        name: name of the array.

    Returns:
        A row for each run that recorded it.
    """
    values = [final(run, name, when) for run in runs]
    return np.array([value for value in values if value is not None], np.float64)


def runs_of(cells: Cells, cell: tuple[str, str]) -> list[Run]:
    """Return the runs of a cell; none where it was not run."""
    return cells[cell].runs if cell in cells else []


def symmetric(published: dict[tuple[str, str], float]) -> Evaluate:
    """Return the test that the asymmetry falls to less than half of its first value.

    The asymmetry is sum |W - Wᵀ| / sum |W|. `published` has the last published value of each cell.
    """

    def evaluate(cells: Cells) -> tuple[str, list[str]]:
        lines, verdicts = [], []
        for cell, theirs in published.items():
            known = [
                run
                for run in runs_of(cells, cell)
                if None not in (final(run, "asymmetry_l1", when) for when in ("first", "last"))
            ]
            first, last = (recorded(known, when, "asymmetry_l1") for when in ("first", "last"))
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
            alignment = recorded(runs_of(cells, cell), "last", "alignment")
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
