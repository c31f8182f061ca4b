"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

TEXT, NUMBER = "---", "---:"  # alignment of a column: left, right


def table(
    header: Iterable[str], rows: Iterable[Sequence[Any]], first: str = TEXT, rest: str = TEXT
) -> str:
    """Return a table in Markdown.

    Args:
        header: titles of the columns.
        rows: cells of each row, one for each column.
        first: alignment of the first column, TEXT or NUMBER.
        rest: alignment of the other columns.

    Returns:
        The table, with a newline after each line.
    """
    header = list(header)
    lines = [header, [first] + [rest] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)
