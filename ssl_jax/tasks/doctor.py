"""The task "doctor": diagnose a pretraining run, finished or not, from its work directory alone."""

from pathlib import Path

import numpy as np

from ssl_jax import files
from ssl_jax.builders.trained_run import read_trained
from ssl_jax.diagnosis.history import Rows, diagnosis_json, facts_of, history_of, total_steps
from ssl_jax.diagnosis.signs import NEEDED
from ssl_jax.diagnosis.state import diagnose
from ssl_jax.errors import UserError
from ssl_jax.reports.doctor import draw, report
from ssl_jax.reports.figure import optional
from ssl_jax.runtime.terminal import say
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import open_workdir
from ssl_jax.workdir.metrics_csv import read_rows


def doctor(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Diagnose a run, print the diagnosis, and write result.json and figures/doctor.png.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the task takes seconds.

    Raises:
        UserError: `run` names no pretraining run, or its files are damaged.
    """
    if not config.run:
        raise UserError(
            "run: got '', takes the work directory of a pretraining run (--config.run=DIR)"
        )
    source = Path(config.run)
    settings = read_trained(source).to_dict()
    rows = whole_rows(source / "metrics.csv")
    facts = facts_of(settings, total_steps(settings, rows))
    history = history_of(rows, source)
    diagnosis = diagnose(history, facts)
    out = open_workdir(directory, config.to_dict())
    last = {"step": int(rows[-1]["step"]), "steps": facts.total_steps}
    result = (
        {"task": "doctor", "run": str(source), "method": settings["method"]}
        | last
        | diagnosis_json(diagnosis)
    )
    result_json.write(out, result)
    with optional(out / "figures" / "doctor.png") as path:
        draw(history, diagnosis, facts, f"{settings['method']}: {diagnosis.state}", path)
    for line in report(diagnosis, settings["method"], **last):
        say(line)
    say(f"result in {out / 'result.json'}, figure in {path}")


def whole_rows(path: Path) -> Rows:
    """Return the rows of metrics.csv; UserError where the file is damaged or has no row.

    A field lost in the middle of a row would otherwise look like a number that is not finite.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; takes a run that has logged a row (log_every steps)")
    text = files.read_text(path, "the table that training writes")
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    rows = read_rows(path)
    if lacking := [
        name for name in NEEDED if name not in (lines[0].strip().split(",") if lines else ())
    ]:
        raise UserError(f"{path}: damaged, its first line lacks {', '.join(lacking)}")
    if not rows:
        raise UserError(f"{path}: no row yet; takes a run that has logged one (log_every steps)")
    for number, line in enumerate(lines, 1):
        if line.count(",") != lines[0].count(","):
            raise UserError(
                f"{path}: damaged, line {number} has another number of columns than the first"
            )
    if not (np.diff([0, *(row["step"] for row in rows)]) > 0).all():
        raise UserError(f"{path}: damaged, its steps do not ascend")
    return rows
