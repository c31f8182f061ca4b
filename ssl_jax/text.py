"""The boundary that foreign text passes before it is shown.

Names of classes, methods, data sets, files and folders come from other people. Each function here
returns such a text as one that shows it in its place and does nothing else there.
"""

import html
import re
from collections.abc import Callable
from typing import Any

MOST = 40  # characters of a foreign text that a figure has room for
SHOWN = 60  # characters of a foreign value in a message
LONGEST = 60  # characters of a foreign text in the name of a file
# What Markdown takes for markup inside a line. An underscore within a word is none.
MARKUP = re.compile(r"[\\`*\[\]~$]|^[#>]|(?<!\w)_|_(?!\w)")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", "|": "&#124;"})


def printable(text: object, lines: bool = False) -> str:
    r"""Return a text for a terminal or a message: nothing in it moves, hides or recolours others.

    >>> print(printable("\x1b[2Jbirds\n"))
    \x1b[2Jbirds\n

    Args:
        text: shown as `str` has it. Bytes of a name that the locale could not read are read as
            UTF-8.
        lines: whether line breaks stay; else they are shown as escapes, like other controls.

    Returns:
        The text, which any encoding of Unicode can write.
    """
    whole = re.sub("[\udc80-\udcff]+", _reread, str(text))
    return "".join(c if _shows(c) or (lines and c == "\n") else escaped(c) for c in whole)


def encodable(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes that are none and half characters are escapes."""
    whole = re.sub("[\udc80-\udcff]+", _reread, text)
    return "".join(escaped(c) if "\ud800" <= c <= "\udfff" else c for c in whole)


def _reread(undecoded: re.Match) -> str:
    """Return what the locale could not read, which Python keeps as surrogates (PEP 383)."""
    return undecoded[0].encode(errors="surrogateescape").decode(errors="backslashreplace")


def _shows(character: str) -> bool:
    """Return whether a character only shows itself; wide and narrow spaces do."""
    return character.isprintable() or (character.isspace() and character not in BREAKS)


BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"  # blank characters that are more than a space


def escaped(text: str) -> str:
    r"""Return every character as an escape of Python, such as \n or \u202e."""
    return "".join(
        c.encode("unicode_escape").decode() if not " " <= c <= "~" else f"\\x{ord(c):02x}"
        for c in text
    )


def shortened(text: str, most: int = MOST) -> str:
    """Return the text, or its first and last characters where it has more than `most`."""
    if len(text) <= most:
        return text
    return f"{text[: most - most // 3 - 1]}…{text[len(text) - most // 3 :]}"


def shown(value: object, most: int = SHOWN) -> str:
    """Return a foreign value for a message, as Python writes it, in at most `most` characters."""
    return shortened(printable(repr(value)), most)


def in_figure(text: object, most: int = MOST) -> str:
    """Return a text for a figure: no formula, no more than `most` characters, seen in a legend."""
    seen = shortened(printable(text), most).replace("$", r"\$")
    # Matplotlib leaves what begins with an underscore out of legends.
    return f" {seen}" if seen.startswith("_") else seen


def in_html(text: object, lines: bool = False) -> str:
    """Return a text for HTML, between tags or as an attribute in quotes; `lines` as above."""
    return html.escape(printable(text, lines), quote=True)


def in_markdown(text: object) -> str:
    """Return a text for a line or a cell of Markdown: no markup, no HTML, no border of a cell."""
    return MARKUP.sub(r"\\\g<0>", printable(text)).translate(ENTITIES)


def in_file_name(text: object) -> str:
    """Return a text for the name of a file: plain ASCII, of at most `LONGEST` characters."""
    return re.sub(r"[^-.\w]+", "-", str(text), flags=re.ASCII)[:LONGEST]


def everywhere(value: Any, show: Callable[[str], str]) -> Any:
    """Return parsed JSON with `show` of every text in it, of values and of names."""
    if isinstance(value, str):
        return show(value)
    if isinstance(value, list):
        return [everywhere(item, show) for item in value]
    if isinstance(value, dict):
        return {show(name): everywhere(item, show) for name, item in value.items()}
    return value
