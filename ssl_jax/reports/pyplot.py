"""Matplotlib's pyplot without windows, imported when the first figure is drawn.

The late import makes training start half a second earlier.
"""

import os
from typing import Any


def __getattr__(name: str) -> Any:
    chosen = os.environ.pop("MPLBACKEND", None)  # an unknown one would stop the import
    try:
        import matplotlib

        matplotlib.use("Agg")  # before pyplot is imported, which chooses for itself otherwise
        from matplotlib import pyplot
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen

    return getattr(pyplot, name)
