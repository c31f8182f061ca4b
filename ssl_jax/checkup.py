"""The task "doctor": what ails a pretraining run, from its work directory alone; and the same while a run goes on."""

import math
import sys
from pathlib import Path

import numpy as np

from ssl_jax import workdir
from ssl_jax.console import say
from ssl_jax.dynamics.doctor import LINE, MEANING, NEEDED, POINT, Diagnosis, Facts, diagnose, read_signs
from ssl_jax.errors import UserError
from ssl_jax.optim import kind_of_decay
from ssl_jax.reports import pyplot as plt
from ssl_jax.train.dynamics_file import NAME, read_dynamics
from ssl_jax.train.metrics import read_rows
from ssl_jax.types import Config

Rows = list[dict[str, float]]


def doctor(config: Config, directory: str) -> None:
    """Reads the run, says what it has, and writes result.json and figures/doctor.png."""
    if not config.run:
        raise UserError("run: got '', takes the work directory of a pretraining run (--config.run=DIR)")
    source = Path(config.run)
    settings = read_settings(source)
    rows = whole_rows(source / "metrics.csv")
    facts = facts_of(settings, total_steps(settings, rows))
    history = history_of(rows, source)
    diagnosis = diagnose(history, facts)
    out = workdir.open_workdir(directory, config.to_dict())
    last = {"step": int(rows[-1]["step"]), "steps": facts.total_steps}
    result = {"task": "doctor", "run": str(source), "method": settings["method"]} | last | told(diagnosis)
    workdir.write_json(out / "result.json", result)
    draw(history, diagnosis, facts, f"{settings['method']}: {diagnosis.state}", out / "figures" / "doctor.png")
    for line in report(diagnosis, settings["method"], **last):
        say(line)
    say(f"result in {out / 'result.json'}, figure in {out / 'figures' / 'doctor.png'}")


# --- While a run goes on ----------------------------------------------------------------------------------


def news(rows: Rows, facts: Facts) -> str | None:
    """One line where the last row changed the state, but not from one collapse to another; else None.

    It remembers nothing: a run that goes on after a stop says no more and no less than one in a single piece.
    """
    now = diagnose(history_of(rows), facts)
    before = diagnose(history_of(rows[:-1]), facts)
    first_good = before.state == "too early" and now.state == "healthy"
    if now.state == before.state or first_good or (before.collapsed and now.collapsed):
        return None
    return f"step {rows[-1]['step']:.0f}: {now.words}"


def examine(rows: Rows, facts: Facts, source: Path) -> Diagnosis:
    """Of a run that has ended, with its dynamics where they were recorded."""
    return diagnose(history_of(rows, source), facts)


# --- What is read -----------------------------------------------------------------------------------------


def facts_of(settings: dict, steps: int) -> Facts:
    """What the doctor has to know of a configuration, as a dict."""
    predictor, optimizer, own = settings["predictor"], settings["optimizer"], settings["optimizer"]["predictor"]
    return Facts(
        dim=settings["projector"]["out"],
        tau=settings["target"]["tau"],
        symmetric=predictor["symmetric"],
        kind=predictor["kind"],
        learning_rate=optimizer["learning_rate"],
        predictor_learning_rate=own["learning_rate"],
        weight_decay=optimizer["weight_decay"],
        predictor_weight_decay=own["weight_decay"],
        momentum=optimizer["momentum"],
        decay=kind_of_decay(optimizer["name"], optimizer["decay"]),
        decay_scale=optimizer["decay_scale"],
        loss_scale=settings["loss_scale"],
        loss=settings.get("loss", "cosine"),  # runs of before there was a choice
        total_steps=steps,
        optimizer=optimizer["name"],
    )


def read_settings(source: Path) -> dict:
    """config.json of a pretraining run; UserError where a field that the doctor needs is not there."""
    settings = workdir.read_json(source / "config.json")
    if settings.get("task") != "pretrain":
        raise UserError(f"run: {source} holds a {settings.get('task')!r} task, takes a pretraining run")
    try:
        _ = facts_of(settings, 0), settings["epochs"], settings["method"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{source / 'config.json'}: damaged, cannot be read at {error}") from error
    return settings


def whole_rows(path: Path) -> Rows:
    """metrics.csv, checked: a field lost in the middle would look like a number that is not finite."""
    if not path.exists():
        raise UserError(f"{path}: not found; takes a run that has logged a row (log_every steps)")
    try:
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = read_rows(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); mend it, or take another run") from error
    if lacking := [name for name in NEEDED if name not in (lines[0].strip().split(",") if lines else ())]:
        raise UserError(f"{path}: damaged, its first line lacks {', '.join(lacking)}")
    if not rows:
        raise UserError(f"{path}: no row yet; takes a run that has logged one (log_every steps)")
    for number, line in enumerate(lines, 1):
        if line.count(",") != lines[0].count(","):
            raise UserError(f"{path}: damaged, line {number} has another number of columns than the first")
    if not (np.diff([0, *(row["step"] for row in rows)]) > 0).all():
        raise UserError(f"{path}: damaged, its steps do not ascend")
    return rows


def total_steps(settings: dict, rows: Rows) -> int:
    """Of the whole run, of which `rows` may be the beginning."""
    last = next((row for row in reversed(rows) if row["epoch"] > 0), None)
    return round(last["step"] / last["epoch"] * settings["epochs"]) if last else int(rows[-1]["step"])


def history_of(rows: Rows, source: Path | None = None) -> dict:
    """Columns of the rows, and the arrays of dynamics.npz in `source`, where there is one."""
    names = (*NEEDED, "predictor_norm")
    history: dict = {name: np.array([row.get(name, np.nan) for row in rows], np.float64) for name in names}
    if source is not None and (source / NAME).exists():
        try:
            history["dynamics"] = read_dynamics(source)
        except UserError as error:  # metrics.csv is enough
            print(error, file=sys.stderr)
    return history


# --- What is written --------------------------------------------------------------------------------------


def told(diagnosis: Diagnosis) -> dict:
    """The diagnosis as JSON can hold it."""
    rank = diagnosis.rank if math.isfinite(diagnosis.rank) else None
    lists = {name: list(getattr(diagnosis, name)) for name in ("signs", "advice")}
    own = diagnosis._asdict() | {"rank": rank} | lists
    return own | {"collapsed": diagnosis.collapsed, "words": diagnosis.words}


def report(diagnosis: Diagnosis, method: str, step: int, steps: int) -> list[str]:
    """Lines for a person who has read no paper."""
    since = "" if diagnosis.since is None else f", since step {diagnosis.since}"
    lines = [f"{method} at step {step} of {steps}: {diagnosis.state.upper()}{since}"]
    lines += [f"  what it means   {MEANING[diagnosis.state]}", f"  how sure        {diagnosis.certainty}"]
    lines += [f"  {'measured' if i == 0 else '':15} {sign}" for i, sign in enumerate(diagnosis.signs)]
    return lines + [f"  {'to mend it' if i == 0 else '':15} {i + 1}. {line}" for i, line in enumerate(diagnosis.advice)]


def draw(history: dict, diagnosis: Diagnosis, facts: Facts, title: str, path: Path) -> None:
    """The signs over the steps, with their alarms (dotted) and the step at which the state set in (red)."""
    finite = np.isfinite([history[name] for name in NEEDED]).all(axis=0)
    known = {name: history[name][finite] for name in (*NEEDED, "predictor_norm")}
    signs = read_signs(known | {"dynamics": history.get("dynamics", {})}, facts.dim)
    panels = {
        "effective rank": (known["effective_rank"], signs.rank, None),
        "rank beside the mean direction": (None, signs.content, LINE[0]),
        "mean cosine of different images": (1 - known["relative_spread"] ** 2, signs.mean, POINT[0]),
        "largest eigenvalue": (known["top_eigenvalue"], None, None),
        "loss": (known["loss"], signs.loss, None),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.1), layout="constrained")
    for axis, (name, (raw, smooth, alarm)) in zip(axes, panels.items(), strict=True):
        for values, style in ((raw, {"alpha": 0.35, "marker": ".", "ms": 3}), (smooth, {"lw": 1.6})):
            if values is not None:
                axis.plot(signs.step, values, color="tab:blue", **style)
        if alarm is not None:
            axis.axhline(alarm, color="black", ls=":", lw=1)
        if diagnosis.since is not None:
            axis.axvline(diagnosis.since, color="tab:red", lw=1.2)
        if name == "largest eigenvalue":
            axis.set_yscale("log")
        elif name != "loss":
            axis.set_ylim(bottom=0)
        axis.set(xlabel="step")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
