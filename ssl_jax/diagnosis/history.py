"""Input of a diagnosis: the rows and the configuration of a run, in progress or finished."""

import math
from pathlib import Path

import numpy as np

from ssl_jax.diagnosis.course import Course
from ssl_jax.diagnosis.facts import COLLAPSED, Diagnosis, Facts, SetBy
from ssl_jax.diagnosis.signs import NEEDED
from ssl_jax.diagnosis.state import diagnose, diagnose_course, state_of_run
from ssl_jax.errors import UserError
from ssl_jax.optim import kind_of_decay
from ssl_jax.runtime.terminal import warn
from ssl_jax.workdir.dynamics_npz import NAME, read_dynamics

Rows = list[dict[str, float]]


class Watch:
    """A run under way: says when its state changes, at a constant cost for each row."""

    def __init__(self, facts: Facts) -> None:
        self._course, self._seen = Course(facts), 0

    def change(self, rows: Rows) -> str | None:
        """Return one line where the last row changed the run's state, else None.

        A change from one collapse to another is no change. What is remembered follows from the
        rows alone: a run that is stopped and resumed reports the same lines as one without a stop.

        Args:
            rows: all rows so far, of which those of earlier calls are the first.

        Returns:
            The line, or None.
        """
        self._course.extend(history_of(rows[self._seen : -1]))
        before = state_of_run(self._course)[0]
        self._course.extend(history_of(rows[max(self._seen, len(rows) - 1) :]))
        self._seen = len(rows)
        now = state_of_run(self._course)[0]
        first_good = before == "too early" and now == "healthy"
        if now == before or first_good or (before in COLLAPSED and now in COLLAPSED):
            return None
        return f"step {rows[-1]['step']:.0f}: {diagnose_course(self._course).words}"


def examine(rows: Rows, facts: Facts, source: Path) -> Diagnosis:
    """Return the diagnosis of a finished run.

    Args:
        rows: rows of metrics.csv.
        facts: the run's configuration.
        source: the work directory, whose dynamics.npz is read where there is one.

    Returns:
        The diagnosis.
    """
    return diagnose(history_of(rows, source), facts)


def facts_of(settings: dict, steps: int) -> Facts:
    """Return the facts of a configuration, given as a dict, and of the run's total steps."""
    predictor, optimizer, own = (
        settings["predictor"],
        settings["optimizer"],
        settings["optimizer"]["predictor"],
    )
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
        loss=settings["loss"],
        total_steps=steps,
        optimizer=optimizer["name"],
        set_by=set_by(predictor),
    )


def set_by(predictor: dict) -> SetBy | None:
    """Return how a predictor follows from F, by the fields of its configuration, or None.

    None where it is learned, or where its spectrum depends on the size of F or on its centring.
    """
    kind, eps = predictor["kind"], predictor["eps"]
    if predictor["centre"]:
        return None
    if kind == "direct_pred" and predictor["eps_mode"] == "relative":
        return SetBy(0.5, eps, "max")
    if kind == "direct_copy":
        return SetBy(1.0, eps, "frobenius")
    if kind == "direct_set" and predictor["norm"] != "none":
        return SetBy(predictor["power"], eps, predictor["norm"])
    return None


def total_steps(settings: dict, rows: Rows) -> int:
    """Return the steps of the whole run, of which `rows` may be the beginning."""
    last = next((row for row in reversed(rows) if row["epoch"] > 0), None)
    return (
        round(last["step"] / last["epoch"] * settings["epochs"]) if last else int(rows[-1]["step"])
    )


def history_of(rows: Rows, source: Path | None = None) -> dict:
    """Return the columns of the rows, with the arrays of dynamics.npz in `source`, if any."""
    names = (*NEEDED, "predictor_norm")
    history: dict = {
        name: np.array([row.get(name, np.nan) for row in rows], np.float64) for name in names
    }
    if source is not None and (source / NAME).exists():
        try:
            history["dynamics"] = read_dynamics(source)
        except UserError as error:  # metrics.csv is sufficient
            warn(str(error))
    return history


def diagnosis_json(diagnosis: Diagnosis) -> dict:
    """Return the diagnosis as JSON can hold it."""
    rank = diagnosis.rank if math.isfinite(diagnosis.rank) else None
    lists = {name: list(getattr(diagnosis, name)) for name in ("signs", "advice")}
    own = diagnosis._asdict() | {"rank": rank} | lists
    return own | {"collapsed": diagnosis.collapsed, "words": diagnosis.words}
