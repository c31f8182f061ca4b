"""The replication in tables: ours beside the published numbers, and every claim with the cells that it rests on.

Everything here comes from result files, STORE/SWEEP/SCALE/CELL/seed-N.json, as a sweep keeps them. Accuracies are
fractions in a file and per cent in a table; ± is the half-width of Student's 95% interval over the seeds.
"""

import numpy as np

from ssl_jax.reports.markdown import table
from ssl_jax.reports.replication.claims import judge_claims
from ssl_jax.reports.replication.published import PUBLISHED, TITLES, Published
from ssl_jax.reports.replication.results import (
    Cells,
    Estimate,
    Gathered,
    Runs,
    accuracy,
    accuracy_of,
    estimate,
    is_number,
    state,
)


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
