"""The task "report": write the replication's tables, claims and page, from result files alone."""

from pathlib import Path

from ssl_jax import files
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.errors import UserError
from ssl_jax.reports.compare.tables import left_out
from ssl_jax.reports.replication.claims import evaluate_claims
from ssl_jax.reports.replication.page import page
from ssl_jax.reports.replication.results import SCALES, Gathered, gather
from ssl_jax.reports.replication.tables import markdown
from ssl_jax.runtime.terminal import say
from ssl_jax.text import printable
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import open_workdir


def report(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Write report.md, report.html and result.json from the stores in `config.runs`.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the task takes seconds.

    Raises:
        UserError: `runs` names no folder, or none with a result.
    """
    folders = [Path(name.strip()) for name in config.runs.split(",") if name.strip()]
    takes = "takes folders that hold SWEEP/SCALE/CELL/seed-N.json, with commas between them"
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UserError(f"runs: {missing[0]} is no folder, {takes}")
    gathered = gather(folders, defaults_of("pretrain"))
    if not gathered.cells:
        why = f" ({gathered.left_out[0]})" if gathered.left_out else ""
        raise UserError(f"runs: got {config.runs!r}, where there is no result{why}; {takes}")
    out = open_workdir(directory, config.to_dict())
    files.write_whole(out / "report.md", text_of(gathered))
    files.write_whole(out / "report.html", page(gathered))
    result_json.write(out, summary(gathered))
    for line in gathered.left_out:
        say(f"left out: {printable(line)}")
    say(f"wrote {out / 'report.md'} and {out / 'report.html'}")


def text_of(gathered: Gathered) -> str:
    """Return the text of report.md."""
    parts = [f"## {scale.capitalize()} scale\n\n{markdown(gathered, scale)}" for scale in SCALES]
    return "\n".join([*parts, *filter(None, [left_out(gathered.left_out, text=True)])])


def summary(gathered: Gathered) -> dict:
    """Return result.json: the number of runs, and the verdict on every claim, of each scale."""
    content: dict = {"task": "report", "left_out": gathered.left_out, "scales": {}}
    for scale, cells in gathered.cells.items():
        content["scales"][scale] = {
            "runs": sum(len(one.runs) for one in cells.values()),
            "claims": [
                {"claim": claim.statement, "verdict": verdict, "cells": lines}
                for claim, verdict, lines in evaluate_claims(cells)
            ],
        }
    return content
