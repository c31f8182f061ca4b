"""Tables, conclusions and figures of the experiments by name, from their result.json alone.

`python -m ssl_jax.reports.experiments.registry RESULT.json [--figures FOLDER]` renders a stored
result anew. Accuracies are fractions in a result and per cent in a table; ± is the half-width of
Student's 95 % interval over the seeds, and of their differences where two arms share seeds.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

from ssl_jax.errors import UserError, nearest
from ssl_jax.reports.experiments import (
    ablation,
    adam_l2,
    cosine_borders,
    cosine_flow,
    model_scale,
    optimizers,
    phase_diagram,
    random_labels,
    ridge,
    robustness,
    semi_supervised,
    signal,
    snapshots,
    strong_penalty,
    zero_shot,
)
from ssl_jax.reports.experiments.shapes import SHAPES
from ssl_jax.reports.figure import label, required, save
from ssl_jax.runtime.terminal import say
from ssl_jax.text import everywhere, in_markdown, printable, shortened
from ssl_jax.workdir.directory import read_json
from ssl_jax.workdir.schema import require

ROOM = 60  # characters that these figures have room for

# Each module has two functions. report(result) returns its tables in Markdown and its conclusion,
# sentences with the result's numbers. draw(result) returns {NAME: figure}.
REPORTS: dict[str, ModuleType] = {
    "ablation": ablation,
    "adam_l2": adam_l2,
    "cosine_borders": cosine_borders,
    "cosine_flow": cosine_flow,
    "model_scale": model_scale,
    "optimizers": optimizers,
    "phase_diagram": phase_diagram,
    "random_labels": random_labels,
    "ridge": ridge,
    "robustness": robustness,
    "semi_supervised": semi_supervised,
    "signal": signal,
    "snapshots": snapshots,
    "strong_penalty": strong_penalty,
    "zero_shot": zero_shot,
}


def report(result: dict) -> str:
    """Return the experiment's tables and conclusion, in Markdown."""
    return REPORTS[result["experiment"]].report(everywhere(result, in_markdown))


def draw(result: dict, folder: Path) -> None:
    """Draw the experiment's figures into a folder, NAME.png each."""
    shown = everywhere(result, partial(label, most=ROOM))
    for name, figure in REPORTS[result["experiment"]].draw(shown).items():
        save(figure, folder / f"{name}.png")


def read(path: Path) -> dict:
    """Return a stored result; UserError where it is no result of an experiment."""
    result = read_json(path)
    name = result.get("experiment")
    if not isinstance(name, str) or name not in REPORTS:
        got = shortened(printable(repr(name)))
        raise UserError(f"{path}: experiment: got {got}, {nearest(got, REPORTS)}")
    return require(result, SHAPES[name], path)


def report_stored(path: Path) -> str:
    """Return the report of a stored result; UserError where its numbers do not fit each other."""
    result = read(path)
    with required(path):
        return report(result)


def draw_stored(path: Path, folder: Path) -> None:
    """Draw the figures of a stored result into a folder; errors as of `report_stored`."""
    result = read(path)
    with required(path):
        draw(result, folder)


def main() -> int:
    """Print the report of a stored result and, with --figures, draw its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of an experiment")
    parser.add_argument("--figures", type=Path, help="folder to draw the figures into")
    given = parser.parse_args()
    try:
        for line in report_stored(given.result).removesuffix("\n").split("\n"):
            say(line)
        if given.figures:
            draw_stored(given.result, given.figures)
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
