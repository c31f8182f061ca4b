"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

TEXT, NUMBER = "---", "---:"  # how a column stands: to the left, to the right


def table(header: Iterable[str], rows: Iterable[Sequence[Any]], first: str = TEXT, rest: str = TEXT) -> str:
    """`first` and `rest`: how the first column and the others stand."""
    header = list(header)
    lines = [header, [first] + [rest] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)
