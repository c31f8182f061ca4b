"""Pages that one file holds whole: readable without a network, on a telephone, and in the dark."""

import base64
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import optional, render
from ssl_jax.text import in_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6472; --line: #d9dee5; --wash: #f5f7fa;
  --blue: #0b5fa5; --paper: #fff; --mark: #fff8e1; --good: #217a3f; --bad: #c0392b; --open: #866500;
  --pale: #697382; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #a3adba; --line: #363d48;
  --wash: #222831; --blue: #7ab8f5; --paper: #171b21; --mark: #3a3420; --good: #6fcf8f;
  --bad: #ff8f80; --open: #e0bd50; --pale: #8b95a4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; } h3 { font-size: 1.02rem; margin: 1.8rem 0 .4rem; }
p { max-width: 44rem; } p, li { overflow-wrap: anywhere; } .soft { color: var(--soft); }
a { color: var(--blue); text-decoration-thickness: 1px; text-underline-offset: 2px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { padding: .34rem .4rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
td { white-space: nowrap; } td.text, th.text { text-align: left; } td.text { white-space: normal; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
tr.absent td { color: var(--pale); } tbody tr:hover { background: var(--wash); }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; background: #fff;
  border-radius: 4px; }
.several { display: grid; gap: .6rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
.several img { width: 100%; max-width: 40rem; margin: 0; }
details { border-top: 1px solid var(--line); padding: .35rem 0; font-size: .88rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
details div:target { background: var(--mark); }
pre { overflow-x: auto; background: var(--wash); padding: .7rem; font-size: .8rem;
  border-radius: 4px; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1rem .9rem 3rem; font-size: 15px; }
  h1 { font-size: 1.35rem; } th, td { padding: .3rem .35rem; }
  .wide img { max-width: 30rem; } }
"""


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """Return a whole page, whose own content policy lets it load nothing from elsewhere.

    Args:
        title: plain text.
        body: HTML, its foreign texts escaped.
        style: more of CSS.
        script: a program in JavaScript; "": the policy lets none run.

    Returns:
        The page in HTML.
    """
    policy = POLICY + ("; script-src 'unsafe-inline'" if script else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{in_html(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><h1>{in_html(title)}</h1>{body}"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, absent: Iterable[int] = ()
) -> str:
    """Return a table that scrolls by itself where it is wider than the page.

    Args:
        header: titles of the columns, plain text.
        rows: cells of each row in HTML, one for each column.
        texts: so many columns at the left are text; the others are numbers.
        absent: numbers of rows that are pale, from 0.

    Returns:
        The table in HTML.
    """

    def cells(row: Iterable[str], tag: str) -> str:
        marks = (' class="text"' if i < texts else "" for i in range(len(header)))
        return "".join(
            f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, row, strict=True)
        )

    pale = set(absent)
    lines = (
        f"<tr{' class=absent' if i in pale else ''}>{cells(row, 'td')}</tr>"
        for i, row in enumerate(rows)
    )
    head = cells(map(in_html, header), "th")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="wide">{body}</div>'


def image(
    draw: "Callable[[], Figure | Sequence[Figure] | None]", words: str, page: str = "report.html"
) -> str:
    """Return figures as SVG inside the page, or a sentence where they cannot be drawn.

    Args:
        draw: returns a figure, several that stand beside each other, or nothing.
        words: their alternative text.
        page: name of the page, for the warning.

    Returns:
        The element; "" where there is nothing to draw.
    """
    parts: list[str] = []
    with optional(Path(page)):
        drawn = draw()
        if not drawn:
            return ""
        figures = drawn if isinstance(drawn, Sequence) else [drawn]
        with plt.rc_context({"svg.hashsalt": "page"}):  # the same figures, the same page
            options = {"metadata": {"Date": None}}
            contents = [render(figure, format="svg", **options) for figure in figures]
        parts = [embedded(content, "svg+xml", words) for content in contents]
    if not parts:
        return f"<p>{in_html(words)}: could not be drawn.</p>"
    kind = "wide" if len(parts) == 1 else "several"
    return f'<div class="{kind}">{"".join(parts)}</div>'


def embedded(content: bytes, kind: str, words: str) -> str:
    """Return an image inside the page.

    Args:
        content: the bytes of its file.
        kind: "svg+xml", "png" or "jpeg".
        words: its alternative text.

    Returns:
        The element in HTML.
    """
    return f'<img alt="{in_html(words)}" src="{data_uri(content, kind)}">'


def data_uri(content: bytes, kind: str) -> str:
    """Return an image as the address of itself; arguments as of `embedded`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
