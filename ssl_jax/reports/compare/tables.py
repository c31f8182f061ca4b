"""One table for runs beside each other: in Markdown, in HTML, and in result.json."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ssl_jax.reports import html, markdown
from ssl_jax.reports.compare.runs import MEASURES, Group, estimate, states
from ssl_jax.text import in_html, in_markdown

Column = tuple[str, Callable[[Any], str]]  # its title, and the text of a row's cell
NOTHING = ("", "-")  # what a cell shows that says nothing


class Table(NamedTuple):
    """A table in plain text."""

    header: list[str]
    rows: list[list[str]]
    texts: int  # so many columns at the left are settings and seeds


def tabulate(items: Sequence[Any], left: Sequence[Column], right: Sequence[Column]) -> Table:
    """Return a table with a row for each item.

    Args:
        items: what the columns read; none of them: a table without rows.
        left: columns that name the row.
        right: columns with numbers; one that says nothing in any row is left out.

    Returns:
        The table.
    """
    columns = [(title, [cell(item) for item in items]) for title, cell in right]
    columns = [one for one in columns if set(one[1]) - set(NOTHING)]
    columns = [(title, [cell(item) for item in items]) for title, cell in left] + columns
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return Table([title for title, _ in columns], rows, len(left))


def measured(names: Iterable[str]) -> list[Column]:
    """Return a column for each measure of groups, by their names in `MEASURES`."""

    def column(name: str) -> Column:
        return MEASURES[name].title, lambda one: str(estimate(one, name) or "")

    return [column(name) for name in names]


def seeds(one: Group) -> str:
    """Return the seeds of the group's runs."""
    return ", ".join(str(run.seed) for run in one.runs)


def minutes(one: Group) -> str:
    """Return the mean wall time of training, in minutes."""
    found = [run.result["seconds"] for run in one.runs if run.result.get("seconds")]
    return f"{sum(found) / len(found) / 60:.1f}" if found else ""


SEEDS: Column = ("seeds", seeds)
STATE: Column = ("state", states)
MINUTES: Column = ("minutes", minutes)


def in_text(table: Table) -> str:
    """Return the table in Markdown; its cells show their texts and nothing else."""
    cells = [[in_markdown(cell) for cell in row] for row in table.rows]
    return markdown.table(map(in_markdown, table.header), cells)


def in_page(table: Table, anchors: Sequence[str]) -> str:
    """Return the table in HTML, with links from its seeds, the last column of texts.

    Args:
        table: in plain text.
        anchors: identifier of each row's runs in the page; "": it has none and is pale.

    Returns:
        The table in HTML.
    """
    rows = [[in_html(cell) for cell in row] for row in table.rows]
    for row, anchor in zip(rows, anchors, strict=True):
        if anchor:
            row[table.texts - 1] = f'<a href="#{anchor}">{row[table.texts - 1]}</a>'
    pale = [number for number, anchor in enumerate(anchors) if not anchor]
    return html.table(table.header, rows, table.texts, pale)


def left_out(lines: Sequence[str], text: bool = False) -> str:
    """Return the list of what is in no table, and why: in HTML, or as `text` in Markdown."""
    if text:
        items = "".join(f"* {in_markdown(line)}\n" for line in lines)
        return f"## Left out\n\n{items}" if lines else ""
    items = "".join(f"<li>{in_html(line)}</li>" for line in lines)
    return f"<h2>Left out</h2><ul>{items}</ul>" if lines else ""
