"""Matplotlib's pyplot without windows, imported when the first figure is drawn.

The late import makes training start half a second earlier.
"""

import os
from typing import Any


def __getattr__(name: str) -> Any:
    # Matplotlib raises for a name that it does not know in there, and pyplot chooses for itself
    # without one.
    os.environ["MPLBACKEND"] = "Agg"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return getattr(pyplot, name)
