"""The replication as one self-contained HTML page: tables, claims, figures and runs."""

import json
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports import html
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import label
from ssl_jax.reports.replication.claims import HOLDS, OPEN, UNTESTED, evaluate_claims
from ssl_jax.reports.replication.published import PUBLISHED, TITLES, Published
from ssl_jax.reports.replication.results import Cells, Gathered, accuracy, accuracy_of
from ssl_jax.reports.replication.tables import (
    HEADER,
    baseline,
    baseline_line,
    lines_of,
    not_run,
    notes_of,
    rows_of,
    sweeps_of,
)
from ssl_jax.text import in_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = re.compile(r"\W", re.ASCII)
OURS, THEIRS, UNTRAINED = "#0b5fa5", "#c4560a", "#777777"
SCALE_WORDS = {
    "full": "The published protocol.",
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
    body = "".join(section(gathered.cells[scale], scale) for scale in scales)
    missing = [scale for scale in SCALE_WORDS if scale not in scales]
    body += "".join(f"<h2>{scale.capitalize()} scale</h2><p>Not run.</p>" for scale in missing)
    return html.document(
        "Non-contrastive learning, replicated",
        '<p class="soft">Linear accuracy on CIFAR-10&rsquo;s test images after the last epoch, in '
        "per cent, beside what Höppe et al. 2022 (ReScience C) and Tian et al. 2021 publish. ± is "
        "the half-width of Student&rsquo;s 95% interval over the seeds; Table 8 has the best of "
        "its probe&rsquo;s epochs, as published. Every number of ours leads to the runs behind "
        f"it.</p>{body}{omissions(gathered.left_out)}",
        STYLE,
    )


def section(cells: Cells, scale: str) -> str:
    """Return everything at one scale."""
    parts = [
        (
            f"<h2>{scale.capitalize()} scale</h2><p>{in_html(SCALE_WORDS[scale])} "
            f"{in_html(baseline_line(cells))}</p>"
        )
    ]
    parts += [claims(cells)]
    words = "Accuracy of every cell, ours and published, and of the untrained encoder"
    parts += [html.image(lambda: draw_accuracies(cells), words)]
    parts += [
        f"<h3>{in_html(TITLES.get(s, s))}</h3>{table(s, cells, scale)}" for s in sweeps_of(cells)
    ]
    if titles := not_run(cells):
        parts.append(f'<p class="soft">Not run at this scale: {in_html(titles)}.</p>')
    parts += [
        html.image(lambda: draw_spectra(cells), "Eigenvalues of the correlation over training")
    ]
    parts.append(f"<h3>The runs</h3>{''.join(runs_of(cells, scale))}")
    return "".join(parts)


def table(sweep: str, cells: Cells, scale: str) -> str:
    """Return a table of one sweep in HTML.

    Args:
        sweep: name of the sweep.
        cells: results at the scale.
        scale: name of the scale.

    Returns:
        The table; our numbers link to their runs.
    """
    lines, absent = [], []
    for published, row in zip(lines_of(sweep, cells), rows_of(sweep, cells, scale), strict=True):
        runs = cells.get((sweep, published.cell))
        texts = [in_html(text) for text in row]
        if runs:
            texts[3] = f'<a href="#{anchor(scale, sweep, published.cell)}">{texts[3]}</a>'
        if published.note:
            texts[2] = f'<span title="{in_html(published.note)}">{texts[2]}*</span>'
        lines.append(texts)
        absent += [] if runs else [len(lines) - 1]
    below = "".join(f"<br>* {in_html(note)}" for note in notes_of(sweep, cells))
    below = below.removeprefix("<br>")
    body = html.table(HEADER, lines, texts=2, absent=absent)
    return f'{body}<p class="soft"><small>{below}</small></p>'


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


def runs_of(cells: Cells, scale: str) -> Iterable[str]:
    """Yield one foldable element for each cell: command, device and configuration of its seeds."""
    for (sweep, cell), runs in cells.items():
        inner = []
        for run in runs:
            device = run.get("device", "device not said")
            facts = f"seed {run['seed']}: linear {100 * run['linear_accuracy']:.2f}; {device}"
            if run.get("seconds"):
                facts += f"; {run['seconds']:.0f} s of training"
            if run.get("verdict"):
                facts += f"; {run['verdict']}"
            command = in_html(run.get("command") or "", lines=True)
            inner.append(f'<p>{in_html(facts)}</p><pre class="command">{command}</pre>')
        config = in_html(json.dumps(runs[0]["config"], indent=1), lines=True)
        name = f"{TITLES.get(sweep, sweep).partition(':')[0]}, {cell}"
        yield (
            f'<details id="{anchor(scale, sweep, cell)}"><summary>{in_html(name)}: '
            f"{in_html(accuracy(runs, accuracy_of(sweep)))}</summary>"
            f"{''.join(inner)}<pre>{config}</pre></details>"
        )


def anchor(scale: str, sweep: str, cell: str) -> str:
    """Return the identifier of a cell's runs in the page.

    Args:
        scale: name of the scale.
        sweep: name of the sweep.
        cell: name of the cell.

    Returns:
        The identifier, another one for every cell, of characters that need no escape in HTML.
    """
    return "-".join(PLAIN.sub(lambda c: f"~{ord(c[0]):x}~", name) for name in (scale, sweep, cell))


def omissions(left_out: list[str]) -> str:
    """Return the list of result files that are in no table, in HTML."""
    if not left_out:
        return ""
    items = "".join(f"<li>{in_html(line)}</li>" for line in left_out)
    return f"<h2>Left out</h2><p>Result files that are in no table, and why.</p><ul>{items}</ul>"


# --- Figures --------------------------------------------------------------------------------------


def draw_accuracies(cells: Cells) -> "Figure":
    """Draw a line for each published cell: seeds, mean and interval, and the published number."""
    lines = [
        (sweep, published) for sweep in sweeps_of(cells) for published in lines_of(sweep, cells)
    ]
    figure, axes = plt.subplots(figsize=(8, 0.29 * len(lines) + 1.1), layout="constrained")
    for y, (sweep, published) in enumerate(lines):
        _draw_cell(
            axes,
            y,
            published,
            [100 * r[accuracy_of(sweep)] for r in cells.get((sweep, published.cell), [])],
        )
        if y and lines[y - 1][0] != sweep:
            axes.axhline(y - 0.5, color="0.8", lw=0.8)
    if untrained := baseline(cells).get("linear"):
        axes.axvline(untrained.mean, color=UNTRAINED, ls=":", lw=1.2, label="untrained encoder")
    axes.set(
        yticks=range(len(lines)),
        yticklabels=[f"{label(s.removeprefix('original_'))}  {label(p.cell)}" for s, p in lines],
    )
    axes.set(
        xlabel="linear accuracy on the test images, last epoch, %",
        xlim=(0, 100),
        ylim=(len(lines) - 0.5, -0.5),
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


def _draw_cell(axes: "Axes", y: int, published: Published, values: list[float]) -> None:
    if published.accuracy is not None:
        axes.plot(
            published.accuracy, y, "D", ms=5.5, mfc="none", mec=THEIRS, mew=1.4, label="published"
        )
    if not values:
        return
    axes.plot(
        values, [y] * len(values), "o", ms=4, color=OURS, alpha=0.45, mew=0, label="ours, each seed"
    )
    if len(values) > 1:
        ours = accuracy([{"linear_accuracy": v / 100} for v in values])
        axes.errorbar(
            ours.mean,
            y,
            xerr=ours.width,
            fmt="|",
            color=OURS,
            ms=11,
            mew=1.8,
            lw=1.4,
            label="mean, 95%",
        )


def draw_spectra(cells: Cells) -> "Figure | None":
    """Draw the eigenvalues of F over the epochs, for each cell of table 1 that recorded them.

    The run is the cell's first seed. None is returned where no cell recorded them.
    """
    names = [published.cell for published in PUBLISHED["table1"]]
    histories = {}
    for name in names:
        for run in cells.get(("table1", name), [])[:1]:
            history = (run.get("dynamics") or {}).get("history", {})
            if history.get("corr_eigenvalues"):
                histories[name] = history
    if not histories:
        return None
    figure, axes = plt.subplots(
        1,
        len(histories),
        figsize=(2.1 * len(histories) + 1, 2.6),
        sharey=True,
        layout="constrained",
    )
    for axis, (name, history) in zip(np.ravel(axes), histories.items(), strict=True):
        values = np.array(history["corr_eigenvalues"], np.float64)
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, values.shape[1]))
        for mode, colour in zip(values.T, colours, strict=True):
            axis.plot(history["epoch"], np.where(mode > 0, mode, math.nan), color=colour, lw=1)
        axis.set(title=name, xlabel="epoch", yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
    np.ravel(axes)[0].set_ylabel("largest eigenvalues of F")
    return figure
