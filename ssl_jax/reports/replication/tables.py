"""The replication in tables: our numbers beside the published ones, and every claim with its cells.

Everything here comes from result files, STORE/SWEEP/SCALE/CELL/seed-N.json, as a sweep stores them.
Accuracies are fractions in a file and per cent in a table. ± is the half-width of Student's 95%
interval over the seeds.
"""

from collections.abc import Iterable

import numpy as np

from ssl_jax.intervals import Estimate
from ssl_jax.reports.markdown import table
from ssl_jax.reports.replication.claims import evaluate_claims
from ssl_jax.reports.replication.published import PUBLISHED, TITLES, Published
from ssl_jax.reports.replication.results import (
    Cells,
    Gathered,
    Runs,
    accuracy,
    accuracy_of,
    estimate,
    state,
)
from ssl_jax.text import in_markdown
from ssl_jax.workdir.schema import is_number


def against(ours: Estimate, published: Published, scale: str) -> tuple[str, str]:
    """Compare an estimate with a published number.

    Args:
        ours: our estimate, in per cent.
        published: the published cell.
        scale: name of our runs' scale.

    Returns:
        The difference in points, and whether the published number is within our interval. The
        second is "yes", "no" or the reason why there is no answer. Both are "" where nothing is
        published.
    """
    if published.accuracy is None:
        return "", ""
    difference = f"{ours.mean - published.accuracy:+.2f}"
    if scale != "full":
        return difference, "other scale"
    if ours.width is None:
        return difference, "one seed"
    return difference, "yes" if abs(ours.mean - published.accuracy) <= ours.width else "no"


HEADER = (
    "",
    "",
    "published",
    "ours",
    "seeds",
    "difference",
    "in interval",
    "ridge",
    "kNN",
    "rank",
    "state",
)


def rows_of(sweep: str, cells: Cells, scale: str) -> list[list[str]]:
    """Return the rows of a published table.

    Args:
        sweep: name of the sweep.
        cells: results at the scale.
        scale: name of the scale.

    Returns:
        A row for each cell, with texts under `HEADER`; "not run" where there is no result.
    """
    return [_row(sweep, p, cells.get((sweep, p.cell), []), scale) for p in lines_of(sweep, cells)]


def lines_of(sweep: str, cells: Cells) -> tuple[Published, ...]:
    """Return the cells of a table: the published ones, else those that we ran."""
    ours = tuple(Published(cell, cell, "") for name, cell in cells if name == sweep)
    return PUBLISHED.get(sweep, ours)


def sweeps_of(cells: Cells) -> list[str]:
    """Return the tables with at least one result, the published ones first."""
    known = {sweep for sweep, _ in cells}
    return [sweep for sweep in PUBLISHED if sweep in known] + sorted(known - PUBLISHED.keys())


def not_run(cells: Cells) -> str:
    """Return the titles of the published tables of which no cell was run."""
    known = sweeps_of(cells)
    return "; ".join(TITLES[sweep] for sweep in PUBLISHED if sweep not in known)


def _row(sweep: str, published: Published, runs: Runs, scale: str) -> list[str]:
    theirs = "" if published.accuracy is None else f"{published.accuracy:g}"
    theirs += "" if published.std is None else f" ± {published.std:g}"
    place = [published.row, published.column, theirs]
    if not runs:
        return [*place, "not run", "", "", "", "", "", "", ""]
    ours = accuracy(runs, accuracy_of(sweep))
    others = [
        str(accuracy(runs, f"{name}_accuracy"))
        if all(is_number(run.get(f"{name}_accuracy")) for run in runs)
        else ""
        for name in PROBES
    ]
    rank = f"{np.mean([run['effective_rank'] for run in runs]):.1f}"
    return [
        *place,
        str(ours),
        str(ours.count),
        *against(ours, published, scale),
        *others,
        rank,
        state(runs),
    ]


PROBES = ("ridge", "knn")


HOPPE = ("table1", "table2")  # one network and one probe; that of table 3 has half as many epochs


def baseline(cells: Cells) -> dict[str, Estimate]:
    """Return the accuracy of the untrained encoder by each probe.

    There is one value a seed, the same in every cell of one configuration.
    """
    runs = [run for (sweep, _), runs in cells.items() for run in runs if sweep in HOPPE]
    estimates = {}
    for name in ("linear", *PROBES):
        field = f"random_init_{name}_accuracy"
        by_seed = {run["seed"]: 100 * run[field] for run in runs if run.get(field) is not None}
        if by_seed:
            estimates[name] = estimate(by_seed.values())
    return estimates


# --- Markdown -------------------------------------------------------------------------------------


def markdown(gathered: Gathered, scale: str) -> str:
    """Return the tables and the claims at one scale."""
    cells = gathered.cells.get(scale, {})
    parts = [
        f"**{in_markdown(TITLES.get(sweep, sweep))}**\n\n"
        f"{table(HEADER, escaped_rows(rows_of(sweep, cells, scale)))}{notes_below(sweep, cells)}"
        for sweep in sweeps_of(cells)
    ]
    if titles := not_run(cells):
        parts.append(f"Not run at this scale: {titles}.\n")
    if lines := baseline_line(cells):
        parts.append(f"{lines}\n")
    claims = escaped_rows(
        [c.statement, c.source, verdict, "; ".join(lines)]
        for c, verdict, lines in evaluate_claims(cells)
    )
    parts.append(f"**Claims**\n\n{table(('claim', 'where', 'here', 'on what it rests'), claims)}")
    return "\n".join(parts)


def escaped_rows(rows: Iterable[list[str]]) -> list[list[str]]:
    """Return rows as cells of Markdown that show their texts and nothing else."""
    return [[in_markdown(cell) for cell in row] for row in rows]


def notes_of(sweep: str, cells: Cells) -> list[str]:
    """Return what is doubtful about the table's published numbers.

    Each note is stated once, with its cells.
    """
    notes: dict[str, list[str]] = {}
    for p in lines_of(sweep, cells):
        if p.note:
            notes.setdefault(p.note, []).append(p.cell)
    return [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def notes_below(sweep: str, cells: Cells) -> str:
    """Return the notes as a list in Markdown."""
    lines = notes_of(sweep, cells)
    return "".join(f"\n* {in_markdown(line)}" for line in lines) + "\n" if lines else ""


def baseline_line(cells: Cells) -> str:
    """Return a sentence on the untrained encoder's accuracy, or ""."""
    values = [f"{name} {value}" for name, value in baseline(cells).items()]
    return f"The untrained encoder: {', '.join(values)}." if values else ""
