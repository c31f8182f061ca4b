"""The replication in tables: ours beside the published numbers, and every claim with the cells that it rests on.

Everything here comes from result files, STORE/SWEEP/SCALE/CELL/seed-N.json, as a sweep keeps them. Accuracies are
fractions in a file and per cent in a table; ± is the half-width of Student's 95% interval over the seeds.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.reports.markdown import table
from ssl_jax.reports.published import PUBLISHED, TITLES, Published
from ssl_jax.statistics import student
from ssl_jax.workdir import spread

NEEDED = ("sweep", "scale", "cell", "seed", "linear_accuracy", "effective_rank", "config")
SCALES = ("full", "mini")
PROTOCOL = {"original_table8": "original_best_test_epoch_accuracy"}  # the accuracy that its paper publishes

Runs = list[dict]  # result files of one cell at one scale, one a seed
Cells = dict[tuple[str, str], Runs]  # by (sweep, cell)


class Gathered(NamedTuple):
    """cells: by scale; left_out: a line for each file that is in no table, and why."""

    cells: dict[str, Cells]
    left_out: list[str]


def gather(folders: Iterable[Path]) -> Gathered:
    """All results below the folders. Left out are damaged files, those that lack a field, seeds that are there twice,
    and runs of another configuration than the first seed of their cell.
    """
    found: dict[str, Cells] = {}
    left_out: list[str] = []
    for path in sorted(path for folder in folders for path in Path(folder).glob("*/*/*/seed-*.json")):
        run = _read(path, left_out)
        if run is None:
            continue
        runs = found.setdefault(run["scale"], {}).setdefault((run["sweep"], run["cell"]), [])
        reason = next((why for other in runs if (why := _conflict(run, other))), None)
        if reason:
            left_out.append(f"{path}: {reason}")
        else:
            runs.append(run | {"path": str(path)})
    return Gathered(found, left_out)


def _read(path: Path, left_out: list[str]) -> dict | None:
    sweep, scale, cell, name = path.parts[-4:]
    place = {"sweep": sweep, "scale": scale, "cell": cell, "seed": name.removeprefix("seed-").removesuffix(".json")}
    try:
        run = json.loads(path.read_text())
        lacking = [field for field in NEEDED if field not in run]
        moved = [f for f, value in place.items() if f in run and str(run[f]) != value]
    except (OSError, ValueError, TypeError) as error:
        left_out.append(f"{path}: damaged ({' '.join(str(error).split())})")
        return None
    if lacking:
        left_out.append(f"{path}: lacks {', '.join(lacking)}")
    elif moved:
        left_out.append(f"{path}: says {moved[0]} {run[moved[0]]!r}, and lies under {place[moved[0]]!r}")
    elif wrong := [name for name in (accuracy_of(sweep), "effective_rank") if not is_number(run.get(name))]:
        left_out.append(f"{path}: {wrong[0]} is {run.get(wrong[0])!r}, no number")
    elif not isinstance(run["config"], dict):
        left_out.append(f"{path}: config is {run['config']!r}, no configuration")
    else:
        return run
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def accuracy_of(sweep: str) -> str:
    """The accuracy that the sweep's paper publishes."""
    return PROTOCOL.get(sweep, "linear_accuracy")


def _conflict(run: dict, other: dict) -> str | None:
    """Why both cannot stand in one cell."""
    if run["seed"] == other["seed"]:
        same = "the same" if run["linear_accuracy"] == other["linear_accuracy"] else "another"
        return f"seed {run['seed']} is there already, with {same} accuracy ({other['path']})"
    ours, theirs = (spread(r["config"]) for r in (run, other))
    apart = sorted(f for f in ours.keys() & theirs.keys() if ours[f] != theirs[f] and f not in OWN)
    return f"{apart[0]} is {ours[apart[0]]}, and {theirs[apart[0]]} in {other['path']}" if apart else None


# In which runs of one cell may differ; a sweep lets them.
OWN = ("seed", "devices", "steps_per_call", "data.resident", "log_every", "eval_every", "checkpoint_every")
OWN += ("dynamics.every", "data.data_dir")


# --- One cell -----------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """Mean over `count` seeds, and the half-width of its 95% interval (None: one seed)."""

    mean: float
    width: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.width:.2f}" if self.width is not None else "")


def estimate(values: Iterable[float]) -> Estimate:
    numbers = np.array(list(values), np.float64)
    mean, width = student(numbers)
    return Estimate(float(mean), None if width is None else float(width), len(numbers))


def accuracy(runs: Runs, field: str = "linear_accuracy") -> Estimate:
    """In per cent."""
    return estimate(100 * run[field] for run in runs)


def against(ours: Estimate, published: Published, scale: str) -> tuple[str, str]:
    """(difference to the published number, whether that lies within our interval)."""
    if published.accuracy is None:
        return "", ""
    difference = f"{ours.mean - published.accuracy:+.2f}"
    if scale != "full":
        return difference, "other scale"
    if ours.width is None:
        return difference, "one seed"
    return difference, "yes" if abs(ours.mean - published.accuracy) <= ours.width else "no"


HEADER = ("", "", "published", "ours", "seeds", "difference", "in interval", "ridge", "kNN", "rank", "state")


def rows_of(sweep: str, cells: Cells, scale: str) -> list[list[str]]:
    """A row for each cell of a published table, "not run" where there is no result."""
    return [_row(sweep, p, cells.get((sweep, p.cell), []), scale) for p in lines_of(sweep, cells)]


def lines_of(sweep: str, cells: Cells) -> tuple[Published, ...]:
    """The cells of a table, published or, of a sweep that only we have, as far as they were run."""
    ours = tuple(Published(cell, cell, "") for name, cell in cells if name == sweep)
    return PUBLISHED.get(sweep, ours)


def sweeps_of(cells: Cells) -> list[str]:
    """Tables with at least one result, the published ones first."""
    found = {sweep for sweep, _ in cells}
    return [sweep for sweep in PUBLISHED if sweep in found] + sorted(found - PUBLISHED.keys())


def not_run(cells: Cells) -> str:
    """Titles of the published tables of which no cell was run."""
    found = sweeps_of(cells)
    return "; ".join(TITLES[sweep] for sweep in PUBLISHED if sweep not in found)


def _row(sweep: str, published: Published, runs: Runs, scale: str) -> list[str]:
    theirs = "" if published.accuracy is None else f"{published.accuracy:g}"
    theirs += "" if published.std is None else f" ± {published.std:g}"
    place = [published.row, published.column, theirs]
    if not runs:
        return [*place, "not run", "", "", "", "", "", "", ""]
    ours = accuracy(runs, accuracy_of(sweep))
    others = [
        str(accuracy(runs, f"{name}_accuracy")) if all(is_number(run.get(f"{name}_accuracy")) for run in runs) else ""
        for name in PROBES
    ]
    rank = f"{np.mean([run['effective_rank'] for run in runs]):.1f}"
    return [*place, str(ours), str(ours.count), *against(ours, published, scale), *others, rank, state(runs)]


PROBES = ("ridge", "knn")


def state(runs: Runs) -> str:
    """What the runs' own diagnoses say, those of several seeds counted."""
    names = [run.get("state", "collapsed" if run.get("collapsed") else "healthy") for run in runs]
    counted = {name: names.count(name) for name in names}
    return ", ".join(
        name if count == len(names) else f"{name} ({count} of {len(names)})" for name, count in counted.items()
    )


HOPPE = ("table1", "table2")  # one network and one probe; that of table 3 has half as many epochs


def baseline(cells: Cells) -> dict[str, Estimate]:
    """Accuracy of the untrained encoder by each probe: one a seed, the same in every cell of one configuration."""
    runs = [run for (sweep, _), runs in cells.items() for run in runs if sweep in HOPPE]
    found = {}
    for name in ("linear", *PROBES):
        field = f"random_init_{name}_accuracy"
        by_seed = {run["seed"]: 100 * run[field] for run in runs if run.get(field) is not None}
        if by_seed:
            found[name] = estimate(by_seed.values())
    return found


# --- Claims -------------------------------------------------------------------------------------------------------

HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not", "cannot be told", "not tested"


class Claim(NamedTuple):
    """`judge(cells)` -> (verdict, evidence: a line for each comparison)."""

    words: str
    source: str
    judge: Callable[[Cells], tuple[str, list[str]]]


def greater(*pairs: tuple[tuple[str, str], tuple[str, str]]) -> Callable:
    """Each first cell is more accurate than its second."""

    def judge(cells: Cells) -> tuple[str, list[str]]:
        known = [(a, b) for a, b in pairs if cells.get(a) and cells.get(b)]
        found = [difference(cells[a], cells[b]) for a, b in known]
        lines = [f"{a[1]} - {b[1]}: {d}" for (a, b), d in zip(known, found, strict=True)]
        return together([_sign(d) for d in found]), lines

    return judge


def difference(ours: Runs, theirs: Runs) -> Estimate:
    """Of the mean accuracies, in points, with Welch's 95% interval; cells do not share their noise, though they may
    share seeds.
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


def together(verdicts: list[str]) -> str:
    """Of several comparisons: one that fails is enough against it, one that is open leaves it open."""
    if not verdicts:
        return UNTESTED
    return next(v for v in (FAILS, OPEN, HOLDS) if v in verdicts)


def no_better(a: tuple[str, str], b: tuple[str, str]) -> Callable:
    """a is less accurate than b; it cannot be told where the difference lies within its interval."""

    def judge(cells: Cells) -> tuple[str, list[str]]:
        if not (cells.get(a) and cells.get(b)):
            return UNTESTED, []
        d = difference(cells[a], cells[b])
        return {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[_sign(d)], [f"{a[1]} - {b[1]}: {d}"]

    return judge


def rescued(cell: tuple[str, str], without: tuple[str, str]) -> Callable:
    """It is more accurate than without, and no run of it collapses."""
    compare = greater((cell, without))

    def judge(cells: Cells) -> tuple[str, list[str]]:
        verdict, lines = compare(cells)
        runs = cells.get(cell, [])
        down = any(run.get("collapsed") for run in runs)
        return FAILS if down and verdict != UNTESTED else verdict, [*lines, f"{cell[1]}: {state(runs)}"] if runs else []

    return judge


def collapses(cell: tuple[str, str]) -> Callable:
    """The run's own diagnosis, and an accuracy below the untrained encoder's."""

    def judge(cells: Cells) -> tuple[str, list[str]]:
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

    return judge


def recorded(runs: Runs, when: str, name: str) -> np.ndarray:
    """What dynamics.npz held of `name` in its "first" or "last" record, a row for each run that recorded it."""
    found = [((run.get("dynamics") or {}).get(when) or {}).get(name) for run in runs]
    return np.array([value for value in found if value is not None], np.float64)


def symmetric(published: dict[tuple[str, str], float]) -> Callable:
    """Asymmetry sum |W - Wᵀ| / sum |W| falls to less than half of what it began with; `published`: where it ended."""

    def judge(cells: Cells) -> tuple[str, list[str]]:
        lines, verdicts = [], []
        for cell, theirs in published.items():
            first, last = (recorded(cells.get(cell, []), when, "asymmetry_l1") for when in ("first", "last"))
            if len(last):
                lines.append(f"{cell[1]}: {first.mean():.2f} -> {last.mean():.2f} (published: 1.41 -> {theirs:g})")
                verdicts.append(HOLDS if np.all(last < 0.5 * first) else FAILS)
        return together(verdicts), lines

    return judge


def aligned(published: dict[tuple[str, str], int]) -> Callable:
    """The share of modes with an alignment above .95 at the end is at least half the published one, of 128 modes."""

    def judge(cells: Cells) -> tuple[str, list[str]]:
        lines, verdicts = [], []
        for cell, theirs in published.items():
            alignment = recorded(cells.get(cell, []), "last", "alignment")
            if len(alignment):
                share = np.mean(alignment > 0.95, axis=1)
                text = f"{100 * share.mean():.0f}% of {alignment.shape[1]} modes above .95"
                lines.append(f"{cell[1]}: {text} (published: {theirs / 1.28:.0f}% of 128)")
                verdicts.append(HOLDS if np.all(share >= theirs / 256) else FAILS)
        return together(verdicts), lines

    return judge


def cell(sweep: str) -> Callable[[str], tuple[str, str]]:
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
    Claim("BYOL with a symmetric predictor is no worse", "table 1", no_better(_1("byol"), _1("byol_sym"))),
    Claim("SimSiam with a symmetric predictor collapses", "table 1", collapses(_1("simsiam_sym"))),
    Claim(
        "Weight decay of a fast predictor rescues it",
        "table 3",
        rescued(_3("simsiam_sym_wdp"), _3("simsiam_sym_nowd")),
    ),
    Claim("Without any decay it collapses even with a fast predictor", "table 3", collapses(_3("simsiam_sym_nowd"))),
    Claim(
        "No decay at all is worse than decay of the predictor",
        "table 3",
        greater(*((_3(f"{name}_wdp"), _3(f"{name}_nowd")) for name in ("byol_sym", "byol", "simsiam_sym", "simsiam"))),
    ),
    Claim(
        "DirectPred beats a one-layer predictor trained by SGD", "table 2", greater((_2("directpred"), _2("linear")))
    ),
    Claim("Setting it every 5 steps only is no better", "table 2", no_better(_2("directpred5"), _2("directpred"))),
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


def judge_claims(cells: Cells) -> list[tuple[Claim, str, list[str]]]:
    return [(claim, *claim.judge(cells)) for claim in CLAIMS]


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown(gathered: Gathered, scale: str) -> str:
    """The tables and the claims at one scale."""
    cells = gathered.cells.get(scale, {})
    parts = [
        f"**{TITLES.get(sweep, sweep)}**\n\n{table(HEADER, rows_of(sweep, cells, scale))}{notes_below(sweep, cells)}"
        for sweep in sweeps_of(cells)
    ]
    if titles := not_run(cells):
        parts.append(f"Not run at this scale: {titles}.\n")
    if lines := baseline_line(cells):
        parts.append(f"{lines}\n")
    claims = [[c.words, c.source, verdict, "; ".join(lines)] for c, verdict, lines in judge_claims(cells)]
    parts.append(f"**Claims**\n\n{table(('claim', 'where', 'here', 'on what it rests'), claims)}")
    return "\n".join(parts)


def notes_of(sweep: str, cells: Cells) -> list[str]:
    """What is doubtful about published numbers of the table, each said once, with the cells it is about."""
    notes: dict[str, list[str]] = {}
    for p in lines_of(sweep, cells):
        if p.note:
            notes.setdefault(p.note, []).append(p.cell)
    return [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def notes_below(sweep: str, cells: Cells) -> str:
    lines = notes_of(sweep, cells)
    return "".join(f"\n* {line}" for line in lines) + "\n" if lines else ""


def baseline_line(cells: Cells) -> str:
    found = [f"{name} {value}" for name, value in baseline(cells).items()]
    return f"The untrained encoder: {', '.join(found)}." if found else ""
