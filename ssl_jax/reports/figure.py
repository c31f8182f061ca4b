"""The boundary that every figure passes on its way to the disk, and every foreign text in one."""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.reports import pyplot as plt
from ssl_jax.runtime.terminal import warn
from ssl_jax.text import MOST, escaped, in_figure, printable, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: Path, dpi: float | None = None) -> Path:
    """Write a figure as PNG, whole or not at all, and close it.

    Args:
        figure: is drawn in memory first.
        path: the file; its folder is created. A link there is replaced, not followed.
        dpi: dots per inch; None: the figure's own.

    Returns:
        The path.
    """
    content = render(figure, format="png", dpi=dpi or "figure")
    files.make_folder(path.parent)
    files.write_whole(path, content)
    return path


def render(figure: "Figure", **options: Any) -> bytes:
    """Return a drawn figure as the bytes of a file, and close it; options as of `savefig`."""
    content = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # texts are long or foreign: boxes are crowded, and warnings help nobody
            warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
            figure.savefig(content, **options)
    finally:
        plt.close(figure)
    return content.getvalue()


def label(text: object, most: int = MOST) -> str:
    """Return a foreign text for a figure; characters that its font lacks are escapes."""
    shown = "".join(c if has_glyph(c) else escaped(c) for c in printable(text))
    return in_figure(shortened(shown, most), most)


@functools.lru_cache(4096)
def has_glyph(character: str) -> bool:
    """Return whether a font of Matplotlib's figures has the character."""
    fonts = plt.matplotlib.font_manager
    families = [fonts.FontProperties(family=[name]) for name in plt.rcParams["font.family"]]
    known = (fonts.get_font(fonts.findfont(family)) for family in families)
    return any(font.get_char_index(ord(character)) for font in known)


@contextmanager
def optional(path: Path) -> Iterator[Path]:
    """Print a warning where a figure cannot be drawn within this context, and go on.

    Args:
        path: the figure or the folder of several, for the warning.

    Yields:
        The path.
    """
    before: set[int] | None = None
    try:
        before = set(plt.get_fignums())
        yield path
    except Exception as error:  # whatever it is: the numbers of the run are worth more
        warn(f"{printable(path)}: not drawn ({_reason(error)})")
        for number in [] if before is None else set(plt.get_fignums()) - before:
            plt.close(number)


@contextmanager
def required(path: Path) -> Iterator[Path]:
    """Turn whatever keeps a figure from being drawn within this context into one line.

    Args:
        path: the figure, or the result that is shown, for the line.

    Yields:
        The path.

    Raises:
        UserError: for every exception.
    """
    try:
        yield path
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be shown ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
