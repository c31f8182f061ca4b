"""Tables, conclusions and figures of the experiments by name, from their result.json alone.

`python -m ssl_jax.reports.experiments.registry RESULT.json [--figures FOLDER]` renders a stored
result anew. Accuracies are fractions in a result and per cent in a table; ± is the half-width of
Student's 95 % interval over the seeds, and of their differences where two arms share seeds.
"""

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.experiments import (
    ablation,
    adam_l2,
    model_scale,
    optimizers,
    phase_diagram,
    random_labels,
    ridge,
    robustness,
    signal,
    snapshots,
    strong_penalty,
    zero_shot,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each module has two functions. report(result) returns its tables in Markdown and its conclusion,
# sentences with the result's numbers. draw(result) returns {NAME: figure}.
REPORTS: dict[str, ModuleType] = {
    "ablation": ablation,
    "adam_l2": adam_l2,
    "model_scale": model_scale,
    "optimizers": optimizers,
    "phase_diagram": phase_diagram,
    "random_labels": random_labels,
    "ridge": ridge,
    "robustness": robustness,
    "signal": signal,
    "snapshots": snapshots,
    "strong_penalty": strong_penalty,
    "zero_shot": zero_shot,
}


def report(result: dict) -> str:
    """Return the experiment's tables and conclusion, in Markdown."""
    return REPORTS[result["experiment"]].report(result)


def draw(result: dict, folder: Path) -> None:
    """Draw the experiment's figures into a folder, NAME.png each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in REPORTS[result["experiment"]].draw(result).items():
        save(figure, folder / f"{name}.png")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure and close it."""
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Print the report of a stored result and, with --figures, draw its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of an experiment")
    parser.add_argument("--figures", type=Path, help="folder to draw the figures into")
    given = parser.parse_args()
    result = json.loads(given.result.read_text())
    print(report(result), end="")
    if given.figures:
        draw(result, given.figures)


if __name__ == "__main__":
    main()
