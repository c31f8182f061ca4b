"""The replication as one self-contained HTML page: tables, claims, figures and runs."""

from typing import TYPE_CHECKING

from ssl_jax.reports import html
from ssl_jax.reports.compare.figures import Line, draw_modes, draw_rows
from ssl_jax.reports.compare.page import section
from ssl_jax.reports.compare.runs import Group, estimate, values
from ssl_jax.reports.compare.tables import in_page, left_out
from ssl_jax.reports.figure import label
from ssl_jax.reports.replication.claims import HOLDS, OPEN, UNTESTED, evaluate_claims
from ssl_jax.reports.replication.published import PUBLISHED, TITLES
from ssl_jax.reports.replication.results import Cells, Gathered
from ssl_jax.reports.replication.tables import (
    accuracy_of,
    baseline,
    baseline_line,
    lines_of,
    not_run,
    notes_of,
    sweeps_of,
    table_of,
)
from ssl_jax.text import in_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE_WORDS = {
    "full": "The published protocol.",
    "midi": "The published protocol with a quarter of the network's width and 30 epochs.",
    "mini": "Part of the data, a small network, a few epochs, for two CPU cores. Its numbers are "
    "to be held against each other; the published ones are of the full protocol.",
}
STYLE = """
.claims { display: grid; gap: .7rem; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); }
.claims li { list-style: none; border: 1px solid var(--line); border-left: 4px solid var(--pale);
  border-radius: 4px; padding: .6rem .8rem; font-size: .92rem; }
.claims .holds { border-left-color: var(--good); } .claims .fails { border-left-color: var(--bad); }
.claims .open { border-left-color: var(--open); } .claims b { display: block; line-height: 1.35; }
.claims i { font-style: normal; font-weight: 600; color: var(--soft); }
.claims .holds i { color: var(--good); } .claims .fails i { color: var(--bad); }
.claims .open i { color: var(--open); } .claims small { color: var(--soft); display: block; }
"""


def page(gathered: Gathered) -> str:
    """Return the whole document."""
    scales = [scale for scale in SCALE_WORDS if gathered.cells.get(scale)]
    body = "".join(scale_of(gathered.cells[scale], scale) for scale in scales)
    missing = [scale for scale in SCALE_WORDS if scale not in scales]
    body += "".join(f"<h2>{scale.capitalize()} scale</h2><p>Not run.</p>" for scale in missing)
    return html.document(
        "Non-contrastive learning, replicated",
        '<p class="soft">Linear accuracy on CIFAR-10&rsquo;s test images after the last epoch, in '
        "per cent, beside what Höppe et al. 2022 (ReScience C) and Tian et al. 2021 publish. ± is "
        "the half-width of Student&rsquo;s 95% interval over the seeds; Table 8 has the best of "
        "its probe&rsquo;s epochs, as published. The seeds of every number lead to its runs.</p>"
        f"{body}{left_out(gathered.left_out)}",
        STYLE,
    )


def scale_of(cells: Cells, scale: str) -> str:
    """Return everything at one scale."""
    anchors = {key: f"{scale}-{number}" for number, key in enumerate(cells)}
    words = f"{in_html(SCALE_WORDS[scale])} {in_html(baseline_line(cells))}"
    parts = [f"<h2>{scale.capitalize()} scale</h2><p>{words}</p>", claims(cells)]
    title = "Accuracy of every cell, ours and published, and of the untrained encoder"
    parts.append(html.image(lambda: draw_accuracies(cells), title))
    for sweep in sweeps_of(cells):
        links = [anchors.get((sweep, p.cell), "") for p in lines_of(sweep, cells)]
        notes = "<br>".join(f"* {in_html(note)}" for note in notes_of(sweep, cells))
        parts.append(
            f"<h3>{in_html(TITLES.get(sweep, sweep))}</h3>"
            f"{in_page(table_of(sweep, cells, scale), links)}"
            f'<p class="soft"><small>{notes}</small></p>'
        )
    if titles := not_run(cells):
        parts.append(f'<p class="soft">Not run at this scale: {in_html(titles)}.</p>')
    title = "Eigenvalues of the correlation over training"
    parts += [html.image(lambda: draw_spectra(cells), title), "<h3>The runs</h3>"]
    parts += [section(anchors[key], title_of(*key, cell), cell) for key, cell in cells.items()]
    return "".join(parts)


def title_of(sweep: str, cell: str, one: Group) -> str:
    """Return the title of a cell's runs."""
    table = TITLES.get(sweep, sweep).partition(":")[0]
    return f"{table}, {cell}: {estimate(one, accuracy_of(sweep))}"


def claims(cells: Cells) -> str:
    """Return the claims with their verdicts and evidence, in HTML."""
    kinds = {HOLDS: "holds", OPEN: "open", UNTESTED: "untested"}
    items = []
    for claim, verdict, lines in evaluate_claims(cells):
        evidence = "".join(f"<small>{in_html(line)}</small>" for line in lines)
        words = (
            f"<b>{in_html(claim.statement)}</b><i>{in_html(verdict)}</i> "
            f"({in_html(claim.source)}){evidence}"
        )
        items.append(f'<li class="{kinds.get(verdict, "fails")}">{words}</li>')
    return f'<h3>Claims</h3><ul class="claims">{"".join(items)}</ul>'


def draw_accuracies(cells: Cells) -> "Figure":
    """Draw a line for each published cell: seeds, mean and interval, and the published number."""
    lines = []
    for sweep in sweeps_of(cells):
        for number, published in enumerate(lines_of(sweep, cells)):
            one = cells.get((sweep, published.cell), Group({}, []))
            name = f"{label(sweep.removeprefix('original_'))}  {label(published.cell)}"
            found = list(values(one, accuracy_of(sweep)).values())
            lines.append(Line(name, found, published.accuracy, first=not number))
    untrained = baseline(cells).get("linear")
    xlabel = "linear accuracy on the test images, last epoch, %"
    return draw_rows(lines, xlabel, untrained.mean if untrained else None)


def draw_spectra(cells: Cells) -> "Figure | None":
    """Draw the eigenvalues of F over the epochs, of the first seed of each cell of table 1."""
    names = [p.cell for p in PUBLISHED["table1"] if ("table1", p.cell) in cells]
    return draw_modes((name, cells["table1", name].runs[0]) for name in names)
