"""Tables, findings and figures of the small networks' experiments, from their result.json alone.

`python -m ssl_jax.reports.experiments.registry RESULT.json [--figures FOLDER]` renders a stored result anew.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.experiments.adam_l2 import draw_adam_l2, report_adam_l2
from ssl_jax.reports.experiments.optimizers import draw_optimizers, report_optimizers
from ssl_jax.reports.experiments.random_labels import draw_random_labels, report_random_labels
from ssl_jax.reports.experiments.ridge import draw_ridge, report_ridge
from ssl_jax.reports.experiments.signal import draw_signal, report_signal
from ssl_jax.reports.experiments.snapshots import draw_snapshots, report_snapshots


def report(result: dict) -> str:
    """The experiment's tables in Markdown, and what was found, in sentences made of its numbers."""
    tables, found = REPORTS[result["experiment"]](result)
    return "\n\n".join([*tables, found]) + "\n"


def draw(result: dict, folder: Path) -> None:
    """The experiment's figures, NAME.png each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES[result["experiment"]](result).items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)


REPORTS: dict[str, Callable[[dict], tuple[list[str], str]]] = {
    "signal": report_signal,
    "adam_l2": report_adam_l2,
    "optimizers": report_optimizers,
    "random_labels": report_random_labels,
    "snapshots": report_snapshots,
    "ridge": report_ridge,
}
FIGURES: dict[str, Callable[[dict], dict]] = {
    "signal": draw_signal,
    "adam_l2": draw_adam_l2,
    "optimizers": draw_optimizers,
    "random_labels": draw_random_labels,
    "snapshots": draw_snapshots,
    "ridge": draw_ridge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of one of these experiments")
    parser.add_argument("--figures", type=Path, help="folder to draw the figures into")
    given = parser.parse_args()
    result = json.loads(given.result.read_text())
    print(report(result), end="")
    if given.figures:
        draw(result, given.figures)


if __name__ == "__main__":
    main()
