"""The replication in tables: our numbers beside the published ones, and every claim with its cells.

Everything here comes from result files, STORE/SWEEP/SCALE/CELL/seed-N.json, as a sweep stores them.
Accuracies are fractions in a file and per cent in a table. ± is the half-width of Student's 95%
interval over the seeds.
"""

from ssl_jax.intervals import Estimate
from ssl_jax.reports import markdown as md
from ssl_jax.reports.compare.runs import Group, estimate
from ssl_jax.reports.compare.tables import STATE, Column, Table, in_text, measured, seeds, tabulate
from ssl_jax.reports.replication.claims import evaluate_claims
from ssl_jax.reports.replication.published import PUBLISHED, TITLES, Published
from ssl_jax.reports.replication.results import PROTOCOL, Cells, Gathered
from ssl_jax.text import in_markdown

HOPPE = ("table1", "table2")  # one network and one probe; that of table 3 has half as many epochs
OTHERS = [*measured(("ridge_accuracy", "knn_accuracy", "effective_rank")), STATE]


def accuracy_of(sweep: str) -> str:
    """Return the name of the accuracy that the sweep's paper publishes."""
    return PROTOCOL.get(sweep, "linear_accuracy")


def table_of(sweep: str, cells: Cells, scale: str) -> Table:
    """Return a published table with our results.

    Args:
        sweep: name of the sweep.
        cells: results at the scale.
        scale: name of the scale; at "full" alone there is a difference to what is published.

    Returns:
        A row for each cell; its seeds are "not run" where there is no result.
    """

    def ours(line: tuple[Published, Group]) -> Estimate | None:
        return estimate(line[1], accuracy_of(sweep))

    def against(line: tuple[Published, Group]) -> tuple[str, str]:
        found, published = ours(line), line[0].accuracy
        if scale != "full" or not found or published is None:
            return "", ""
        ahead = found.mean - published
        within = "yes" if abs(ahead) <= (found.width or 0) else "no"
        return f"{ahead:+.2f}", "one seed" if found.width is None else within

    left: list[Column] = [
        ("", lambda line: line[0].row),
        ("", lambda line: line[0].column),
        ("seeds", lambda line: seeds(line[1]) or "not run"),
    ]
    right: list[Column] = [
        ("published", lambda line: theirs(line[0])),
        ("ours", lambda line: str(ours(line) or "")),
        ("ours - published", lambda line: against(line)[0]),
        ("within interval", lambda line: against(line)[1]),
    ]
    right += [(title, lambda line, cell=cell: cell(line[1])) for title, cell in OTHERS]
    lines = [(p, cells.get((sweep, p.cell), Group({}, []))) for p in lines_of(sweep, cells)]
    return tabulate(lines, left, right)


def theirs(published: Published) -> str:
    """Return a published number; * marks one with a note."""
    if published.accuracy is None:
        return ""
    spread = "" if published.std is None else f" ± {published.std:g}"
    return f"{published.accuracy:g}{spread}{'*' if published.note else ''}"


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


def notes_of(sweep: str, cells: Cells) -> list[str]:
    """Return what is doubtful about the table's published numbers.

    Each note is stated once, with its cells.
    """
    notes: dict[str, list[str]] = {}
    for p in lines_of(sweep, cells):
        if p.note:
            notes.setdefault(p.note, []).append(p.cell)
    return [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def baseline(cells: Cells) -> dict[str, Estimate]:
    """Return the accuracy of the untrained encoder by each probe.

    There is one value a seed, the same in every cell of one configuration.
    """
    runs = [run for (sweep, _), cell in cells.items() for run in cell.runs if sweep in HOPPE]
    names = ("linear", "ridge", "knn")
    found = {x: estimate(Group({}, runs), f"random_init_{x}_accuracy") for x in names}
    return {name: value for name, value in found.items() if value}


def baseline_line(cells: Cells) -> str:
    """Return a sentence on the untrained encoder's accuracy, or ""."""
    values = [f"{name} {value}" for name, value in baseline(cells).items()]
    return f"The untrained encoder: {', '.join(values)}." if values else ""


def markdown(gathered: Gathered, scale: str) -> str:
    """Return the tables and the claims at one scale."""
    cells = gathered.cells.get(scale, {})
    parts = []
    for sweep in sweeps_of(cells):
        title = in_markdown(TITLES.get(sweep, sweep))
        notes = "".join(f"\n* {in_markdown(line)}" for line in notes_of(sweep, cells))
        text = f"**{title}**\n\n{in_text(table_of(sweep, cells, scale))}{notes}"
        parts.append(text if text.endswith("\n") else f"{text}\n")
    if titles := not_run(cells):
        parts.append(f"Not run at this scale: {titles}.\n")
    if line := baseline_line(cells):
        parts.append(f"{line}\n")
    claims = [
        [in_markdown(text) for text in (claim.statement, claim.source, verdict, "; ".join(lines))]
        for claim, verdict, lines in evaluate_claims(cells)
    ]
    header = ("claim", "where", "here", "on what it rests")
    return "\n".join([*parts, f"**Claims**\n\n{md.table(header, claims)}"])
