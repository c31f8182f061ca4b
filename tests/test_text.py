"""Foreign text in messages, figures, pages, Markdown and the names of files."""

import html
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser

import pytest
from nasty import NASTY, random_texts

from ssl_jax.text import (
    LONGEST,
    MOST,
    everywhere,
    in_figure,
    in_file_name,
    in_html,
    in_markdown,
    printable,
    shortened,
)

TEXTS = [*NASTY, *random_texts(40)]
# of Unicode: controls, formats (directions among them), surrogates, private, unassigned, breaks
MOVING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


class Parsed(HTMLParser):
    """Elements, attributes and text of a piece of HTML, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.comments, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs

    def handle_comment(self, data):
        self.comments.append(data)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_printable_is_text_and_nothing_else(text):
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & MOVING
    shown.encode()  # UTF-8 has it
    assert printable(shown) == shown


def test_printable_leaves_plain_text_and_shows_the_rest():
    assert printable("Käfer 中文 🐸, a\u00a0b") == "Käfer 中文 🐸, a\u00a0b"
    assert printable("a\nb\x1b[0m\u202e\ud800") == r"a\nb\x1b[0m\u202e\ud800"
    assert printable("a\nb\r", lines=True) == "a\nb\\r"


def test_printable_reads_names_that_the_locale_could_not():
    raw = "Käfer".encode() + b"\xff"
    assert printable(raw.decode("ascii", "surrogateescape")) == "Käfer\\xff"


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_html_is_text_in_an_element_and_in_an_attribute(text):
    shown = in_html(text)
    parsed = Parsed(f'<p title="{shown}">{shown}</p>')
    assert parsed.elements == ["p"] and not parsed.comments
    assert parsed.attributes == [("title", printable(text))]
    assert parsed.text == printable(text) == html.unescape(shown)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_markdown_is_text_by_an_independent_renderer(text):
    shown = in_markdown(text)
    assert "\n" not in shown and not re.search(r"(?<!\\)`", shown) and "<" not in shown
    assert "|" not in shown  # a table's border, even behind a backslash in some renderers
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    markdown.enable("table")
    cells = Parsed(markdown.render(f"| a | b |\n|---|---|\n| {shown} | x |\n"))
    assert sorted(cells.elements) == sorted("table thead tr th th tbody tr td td".split())
    assert [line for line in cells.text.split("\n") if line][2:] == [
        *([printable(text).strip()] if printable(text).strip() else []),
        "x",
    ]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_names_of_files_are_plain(text):
    assert re.fullmatch(rf"[-.A-Za-z0-9_]{{0,{LONGEST}}}", in_file_name(text))


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_figures_have_room(text):
    assert len(in_figure(text).replace("\\$", "$")) <= MOST + 1
    assert not in_figure(text).startswith("_")


def test_shortened_keeps_both_ends():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 9) == "abcde…ijk"


def test_everywhere_reaches_names_and_values():
    value = {"a": ["b", {"c": "d", "e": 1.5, "f": None}], "g": True}
    assert everywhere(value, str.upper) == {
        "A": ["B", {"C": "D", "E": 1.5, "F": None}],
        "G": True,
    }


def test_an_ascii_terminal_gets_text_too():
    program = (
        "import sys; from ssl_jax.text import printable; "
        "sys.stdout.reconfigure(errors='backslashreplace'); print(printable(sys.argv[1]))"
    )
    strict = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, "Käfer\n"],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii"} | strict,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"K\\xe4fer\\n\n"
