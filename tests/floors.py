"""The floors of `ssl_jax/`, and their picture: `python tests/floors.py` draws
docs/figures/floors.svg anew.
"""

from html import escape
from pathlib import Path

# Folders and loose files of ssl_jax/, from the ground up. Those of one floor do not import each
# other.
FLOORS = (
    ("ssl_jax", "errors", "text", "types"),
    ("digests", "files", "intervals", "linalg", "losses"),
    ("runtime",),
    ("augment", "data", "dynamics", "models", "optim", "workdir"),
    ("predictors", "probes"),
    ("diagnosis", "export"),
    ("reports", "train"),
    ("builders",),
    ("experiments", "runs", "sweeps"),
    ("sklearn", "tasks"),
    ("launch",),  # the door: nothing imports it
)
# What must never be, whatever becomes of the floors. Tasks are for the door alone.
FORBIDDEN = {
    "reports": {"train", "builders", "tasks"},
    "train": {"probes"},
    "predictors": {"train"},
}

PICTURE = Path(__file__).parent.parent / "docs" / "figures" / "floors.svg"
WIDTH, HEIGHT, GAP = 104, 30, 10  # of a box, and between boxes, in pixels


def draw() -> str:
    """The picture as SVG: a row of boxes for each floor, the door on top, and the way that imports
    go beside them.
    """
    wide = max(map(len, FLOORS)) * (WIDTH + GAP) + 110
    tall = len(FLOORS) * (HEIGHT + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" '
        f'width="{wide}" height="{tall}" font-family="sans-serif" font-size="13">',
        "<title>A module imports only from floors below its own</title>",
        f'<rect width="{wide}" height="{tall}" fill="white"/>',
        f'<path d="M 30 {GAP} V {tall - 2 * GAP} m -6 -10 l 6 10 l 6 -10" '
        'fill="none" stroke="#555" stroke-width="2"/>',
        f'<text x="46" y="{tall // 2}" fill="#555">imports</text>',
    ]
    for row, names in enumerate(reversed(FLOORS)):
        y = GAP + row * (HEIGHT + GAP)
        for column, name in enumerate(names):
            x = 110 + column * (WIDTH + GAP)
            lines.append(
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" '
                'fill="#e8eef7" stroke="#5b7db1"/>'
                f'<text x="{x + WIDTH // 2}" y="{y + 20}" text-anchor="middle" '
                f'fill="#1b2a41">{escape(name)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
