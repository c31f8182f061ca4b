"""Compared runs as one page in HTML and one table in Markdown."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.reports import html
from ssl_jax.reports.compare.figures import draw_curves, draw_fields, draw_modes, draw_spectra
from ssl_jax.reports.compare.runs import (
    ACCURACIES,
    LABEL_FREE,
    MEASURES,
    Group,
    Run,
    common_settings,
    difference,
    main_measure,
    measures_of,
    short,
    spelled,
)
from ssl_jax.reports.compare.tables import (
    MINUTES,
    SEEDS,
    STATE,
    Column,
    Table,
    in_page,
    in_text,
    left_out,
    measured,
    tabulate,
)
from ssl_jax.text import in_html, in_markdown

SHOWN = 12  # groups whose first run shows its figures
PICTURES = ("training", "collapse", "spectrum", "features", "neighbours")
SIDE = 640  # of a run's figure on the page, in pixels at most


class Compared(NamedTuple):
    """Everything that the page shows."""

    groups: list[Group]
    left_out: list[str]  # a line for each work directory that cannot be read


def main_table(groups: Sequence[Group]) -> Table:
    """Return settings, accuracies, state and time of each group.

    The difference is that to the first group, over the seeds that both have. Without any accuracy
    the first label-free measure stands there.
    """
    main, names = main_measure(groups), measures_of(groups)
    names = [name for name in names if name in ACCURACIES] or names[:1]
    columns = measured(names)
    if main in names:
        columns.insert(names.index(main) + 1, ("minus the first", partial(_ahead, groups[0], main)))
    return tabulate(groups, [*_settings(groups), SEEDS], [*columns, STATE, MINUTES])


def _ahead(first: Group, name: str, one: Group) -> str:
    return "" if one is first else str(difference(one, first, name) or "")


def more_table(groups: Sequence[Group]) -> Table | None:
    """Return the measures that need no labels, of each group; None where there are none."""
    names = [name for name in measures_of(groups) if name in LABEL_FREE]
    return tabulate(groups, [*_settings(groups), SEEDS], measured(names)) if names else None


def _settings(groups: Sequence[Group]) -> list[Column]:
    """Return a column for each field that varies, or one for many."""
    if common := common_settings(groups):
        return [("settings", lambda one: one.label(common))]

    def column(field: str) -> Column:
        return short(field), lambda one: spelled(one.settings[field])

    return [column(field) for field in groups[0].settings]


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
    tables = filter(None, (main_table(compared.groups), more_table(compared.groups)))
    parts = [f"{in_markdown(introduction(compared.groups))}\n", *map(in_text, tables)]
    return "\n".join([*parts, *filter(None, [left_out(compared.left_out, text=True)])])


def page(compared: Compared) -> str:
    """Return compare.html: one file that needs no network."""
    groups, name = compared.groups, "compare.html"
    anchors = [f"group-{number}" for number in range(len(groups))]
    parts = [f'<p class="soft">{in_html(introduction(groups))}</p>']
    parts.append(in_page(main_table(groups), anchors))
    if (main := main_measure(groups)) is not None:
        words = f"{MEASURES[main].title} against what varies"
        parts.append(html.image(lambda: draw_fields(groups, main), words, name))
    common = common_settings(groups)
    labels = [one.label(common) for one in groups]
    firsts = [(one.label(common, last=True), one.runs[0]) for one in groups]
    figures = (
        ("Over training", partial(draw_curves, groups)),
        ("Spectra over training", partial(draw_modes, firsts)),
        ("Spectra at the end", partial(draw_spectra, groups)),
    )
    for title, draw in figures:
        figure = html.image(draw, title, name)
        parts.append(f"<h2>{title}</h2>{figure}" if figure else "")
    if table := more_table(groups):
        parts.append(f"<h2>Beside accuracy</h2>{in_page(table, anchors)}")
    parts.append("<h2>The runs</h2>")
    for number, (one, words) in enumerate(zip(groups, labels, strict=True)):
        parts.append(section(anchors[number], words, one, number < SHOWN))
    return html.document("Runs compared", "".join([*parts, left_out(compared.left_out)]))


def section(anchor: str, title: str, one: Group, pictures: bool = False) -> str:
    """Return the runs of one group, folded.

    Args:
        anchor: identifier of what is folded: a link to it unfolds it.
        title: of the group, plain text.
        one: the group.
        pictures: whether the first run shows its figures.

    Returns:
        Verdict, command, commit, device and time of each run, and the configuration, in HTML.
    """
    inner = "".join(facts_of(run) for run in one.runs)
    if pictures:
        inner += f'<div class="several">{"".join(pictures_of(one.runs[0].path))}</div>'
    config = in_html(json.dumps(one.runs[0].fields, indent=1, default=str), lines=True)
    return (
        f'<details><summary>{in_html(title)}</summary><div id="{anchor}">{inner}'
        f"<details><summary>configuration</summary><pre>{config}</pre></details></div></details>"
    )


def facts_of(run: Run) -> str:
    """Return what a run says of itself."""
    result, origin = run.result, run.result.get("provenance") or {}
    command, alone = result.get("command") or origin.get("command"), Group({}, [run])
    facts = [f"seed {run.seed}", str(run.path)]
    facts += [f"{title} {text}" for title, cell in measured(ACCURACIES) if (text := cell(alone))]
    facts += [result["device"]] if result.get("device") else []
    facts += [f"{result['seconds']:.0f} s of training"] if result.get("seconds") else []
    speed = result.get("images_per_second")
    facts += [f"{speed:.0f} images/s"] if speed else []
    facts += [f"commit {origin['commit']}"] if origin.get("commit") else []
    text = f"<p>{in_html('; '.join(facts))}</p>"
    text += f"<p>{in_html(result['verdict'])}</p>" if result.get("verdict") else ""
    return text + (f'<pre class="command">{in_html(command, lines=True)}</pre>' if command else "")


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
