"""Matplotlib's pyplot without windows, imported when the first figure is drawn.

The late import makes training start half a second earlier.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    import matplotlib

    matplotlib.use("Agg")  # before pyplot is imported, which chooses for itself otherwise
    from matplotlib import pyplot

    return getattr(pyplot, name)
