"""Compared runs as one page in HTML and one table in Markdown."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.reports import html, markdown
from ssl_jax.reports.compare.figures import draw_curves, draw_fields, draw_spectra
from ssl_jax.reports.compare.runs import (
    ACCURACIES,
    LABEL_FREE,
    MEASURES,
    Group,
    Run,
    common_settings,
    difference,
    estimate,
    main_measure,
    measures_of,
    short,
    spelled,
    states,
)
from ssl_jax.text import in_html, in_markdown

SHOWN = 12  # groups whose first run shows its figures
PICTURES = ("training", "collapse", "spectrum", "features", "neighbours")
SIDE = 640  # of a run's figure on the page, in pixels at most


class Compared(NamedTuple):
    """Everything that the page shows."""

    groups: list[Group]
    left_out: list[str]  # a line for each work directory that cannot be read


class Table(NamedTuple):
    """A table of the groups, in plain text."""

    header: list[str]
    rows: list[list[str]]  # one for each group
    texts: int  # so many columns at the left are settings and seeds


def main_table(groups: Sequence[Group]) -> Table:
    """Return settings, accuracies, state and time of each group.

    The difference is that to the first group, over the seeds that both have. Without any accuracy
    the first label-free measure stands there.
    """
    main, names = main_measure(groups), measures_of(groups)
    shown = [name for name in names if name in ACCURACIES] or names[:1]
    paired = main in shown and len(groups) > 1
    header = []
    for name in shown:
        header += [MEASURES[name].title] + ["minus the first"] * (paired and name == main)
    rows = []
    for one in groups:
        row = []
        for name in shown:
            row.append(str(estimate(one, name) or ""))
            if paired and name == main:
                row.append("" if one is groups[0] else str(difference(one, groups[0], name) or ""))
        rows.append([*row, states(one), minutes(one)])
    return _with_settings(groups, [*header, "state", "minutes"], rows)


def more_table(groups: Sequence[Group]) -> Table | None:
    """Return the measures that need no labels, of each group; None where there are none."""
    names = [name for name in measures_of(groups) if name in LABEL_FREE]
    if not names:
        return None
    rows = [[str(estimate(one, name) or "") for name in names] for one in groups]
    return _with_settings(groups, [MEASURES[name].title for name in names], rows)


def _with_settings(groups: Sequence[Group], header: list[str], rows: list[list[str]]) -> Table:
    """Return the table with settings and seeds at its left; many settings share a column."""
    common = common_settings(groups)
    if common:
        left = [[one.label(common)] for one in groups]
        titles = ["settings"]
    else:
        left = [[spelled(value) for value in one.settings.values()] for one in groups]
        titles = [short(field) for field in groups[0].settings]
    seeds = [", ".join(str(run.seed) for run in one.runs) for one in groups]
    whole = [[*cells, seed, *row] for cells, seed, row in zip(left, seeds, rows, strict=True)]
    return Table([*titles, "seeds", *header], whole, len(titles) + 1)


def minutes(one: Group) -> str:
    """Return the mean wall time of training, in minutes."""
    found = [run.result["seconds"] for run in one.runs if run.result.get("seconds")]
    return f"{sum(found) / len(found) / 60:.1f}" if found else ""


def introduction(groups: Sequence[Group]) -> str:
    """Return in words how many runs there are and what they have in common."""
    runs, fields = sum(len(one.runs) for one in groups), groups[0].runs[0].fields
    shared = [
        f"{name} {spelled(fields[name])}"
        for name in ("task", "data.name", "encoder.name", "epochs", "batch_size", "optimizer.name")
        if name in fields and name not in groups[0].settings
    ]
    text = f"{runs} runs in {len(groups)} groups: {', '.join(shared)}."
    if common := common_settings(groups):
        listed = ", ".join(f"{short(field)}={spelled(value)}" for field, value in common.items())
        text += f" Most have {listed}; the table says what is not so."
    if any(len(one.runs) > 1 for one in groups):
        text += " ± is the half-width of Student's 95% interval over the seeds."
    return text


def text_of(compared: Compared) -> str:
    """Return compare.md."""
    parts = [f"{in_markdown(introduction(compared.groups))}\n"]
    for table in filter(None, (main_table(compared.groups), more_table(compared.groups))):
        cells = [[in_markdown(cell) for cell in row] for row in table.rows]
        parts.append(f"\n{markdown.table(map(in_markdown, table.header), cells)}")
    if compared.left_out:
        parts.append("\n## Left out\n\n")
        parts += [f"* {in_markdown(line)}\n" for line in compared.left_out]
    return "".join(parts)


def page(compared: Compared) -> str:
    """Return compare.html: one file that needs no network."""
    groups, name = compared.groups, "compare.html"
    parts = [f'<p class="soft">{in_html(introduction(groups))}</p>', linked(main_table(groups))]
    main = main_measure(groups)
    if main is not None:
        words = f"{MEASURES[main].title} against what varies"
        parts.append(html.image(lambda: draw_fields(groups, main), words, name))
    figures = (("Over training", draw_curves), ("Spectra at the end", draw_spectra))
    for title, draw in figures:
        figure = html.image(partial(draw, groups), title, name)
        parts.append(f"<h2>{title}</h2>{figure}" if figure else "")
    if table := more_table(groups):
        parts.append(f"<h2>Beside accuracy</h2>{linked(table)}")
    parts.append("<h2>The runs</h2>")
    parts += [section(number, one, groups) for number, one in enumerate(groups)]
    if compared.left_out:
        items = "".join(f"<li>{in_html(line)}</li>" for line in compared.left_out)
        parts.append(f"<h2>Left out</h2><ul>{items}</ul>")
    return html.document("Runs compared", "".join(parts))


def linked(table: Table) -> str:
    """Return a table in HTML; its seeds lead to the runs."""
    rows = [[in_html(cell) for cell in row] for row in table.rows]
    for number, row in enumerate(rows):
        seeds = table.texts - 1
        row[seeds] = f'<a href="#group-{number}">{row[seeds]}</a>'
    return html.table(table.header, rows, table.texts)


def section(number: int, one: Group, groups: Sequence[Group]) -> str:
    """Return the runs of one group: verdict, command, commit, device, time, figures."""
    inner = "".join(facts_of(run) for run in one.runs)
    if number < SHOWN:
        inner += f'<div class="several">{"".join(pictures_of(one.runs[0].path))}</div>'
    config = in_html(json.dumps(one.runs[0].fields, indent=1, default=str), lines=True)
    name = in_html(one.label(common_settings(groups)))
    return (
        f'<details id="group-{number}"><summary>{name}</summary>{inner}'
        f"<details><summary>configuration</summary><pre>{config}</pre></details></details>"
    )


def facts_of(run: Run) -> str:
    """Return what a run says of itself."""
    result, origin = run.result, run.result.get("provenance") or {}
    facts = [f"seed {run.seed}", str(run.path)]
    facts += [result["device"]] if "device" in result else []
    facts += [f"{result['seconds']:.0f} s of training"] if result.get("seconds") else []
    speed = result.get("images_per_second")
    facts += [f"{speed:.0f} images/s"] if speed else []
    facts += [f"commit {origin['commit']}"] if origin.get("commit") else []
    text = f"<p>{in_html('; '.join(facts))}</p>"
    text += f"<p>{in_html(result['verdict'])}</p>" if result.get("verdict") else ""
    if origin.get("command"):
        text += f'<pre class="command">{in_html(origin["command"], lines=True)}</pre>'
    return text


def pictures_of(run: Path) -> list[str]:
    """Return the figures of a run, as small as the page shows them; those that can be read."""
    from PIL import Image

    found = []
    for name in PICTURES:
        path = run / "figures" / f"{name}.png"
        try:
            with Image.open(io.BytesIO(files.read_bytes(path, "a figure"))) as image:
                image.thumbnail((SIDE, SIDE))
                small = io.BytesIO()
                image.convert("RGB").save(small, "PNG", optimize=True)
        except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        found.append(html.embedded(small.getvalue(), "png", name))
    return found
