"""Matplotlib's pyplot without windows, imported when a first figure is drawn: training begins half a second sooner."""

from typing import Any


def __getattr__(name: str) -> Any:
    import matplotlib

    matplotlib.use("Agg")  # before pyplot is imported, which chooses for itself otherwise
    from matplotlib import pyplot

    return getattr(pyplot, name)
