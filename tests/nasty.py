"""Texts that other people may call their classes, methods, data sets, files and folders."""

import numpy as np

SCRIPT = "<img src=x onerror=alert(1)>"
NASTY = (
    SCRIPT,
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "--><svg onload=alert(1)>",
    "</pre></details><script>",
    "&lt;script&gt;&amp;",
    "$x$",
    "$\\frac{1}{$",
    "a $ b",
    "cost: 5$ or 6$",
    "\\$",
    "\\",
    "a\\b\\",
    "{%s} {0} %d",
    "_hidden",
    "__",
    "Käfer, Straße, naïve",
    "中文 🐸",
    "\ud800",
    "half \udcff of it",
    "\udcc3\udcbc",
    "line\nbreak",
    "\r\n\t",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "left\u202etfel",
    "zero\u200bwidth",
    "nul\x00l",
    "| a | b |",
    "`code` *bold* [link](http://x) ~~no~~",
    "# title",
    "> quote",
    "",
    " ",
    "x" * 300,
    "ü" * 300,
    "$" * 300,
    "<" * 300,
    "1e5",
    "null",
)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of characters from all over Unicode, and of those that mean something here."""
    rng = np.random.default_rng(seed)
    special = "<>&\"'`|$\\_*[]{}%\n\r\t\x00\x1b\u202e\ud800\udcc3ü中 ax0"

    def one(length: int) -> str:
        wild = [chr(c) for c in rng.integers(0, 0x11000, length)]
        return "".join(rng.choice(list(special)) if rng.random() < 0.7 else c for c in wild)

    return [one(int(length)) for length in rng.integers(1, 60, count)]
