"""Diagnosis of a pretraining run: its state, when it began, its signs, and what to change.

Pure NumPy. It reads the numbers that every run logs. Two of them distinguish the states:

    mean share  m = ||E u||² for u = z / ||z||. It is the mean cosine between the projections of two
                images. By the relative spread it is 1 - spread² (exactly, where all D coordinates
                vary alike). Near 1 all projections are one point. dynamics.npz has
                ||E z||² / E ||z||² instead, the same where projections have one length.
    content     the effective rank beside the mean. F = E[z zᵀ] is not centred: the mean direction
                has a share m of its trace, and the rest has effective rank r_c. By the chain rule
                of entropy log rank(F) = h(m) + (1 - m) log r_c, with
                h(m) = -m log m - (1 - m) log(1 - m), so that

                    r_c = exp((log rank - h(m)) / (1 - m)), at least 1.  (`signs.content_rank`)

                Near 1 the projections are on a line. A low rank of F alone shows little: a
                healthy run of the replication begins at rank 1 (all of it mean), and the small
                runs of this project learn at 3 to 5 of 64.

A third number separates a mode that runs away from dimensions that fade: whether the largest
eigenvalue of F has grown since the start. Advice is of two kinds, and says which. *Theory* has the
run's own settings: for a loss that sees scale `dynamics.theory`, the flow of one eigenvalue s of F
and p of the predictor; for a loss that does not `dynamics.cosine`, and then the advice says "theory
of the cosine". *Experience* is what was measured: Tian et al. 2021 (arXiv 2102.06810), its
replication (Höppe et al. 2022), and this project's results.
"""

import numpy as np

from ssl_jax.diagnosis.advice import advise, decay_time
from ssl_jax.diagnosis.certainty import Doubt, certainty_of, newer, over, spacing
from ssl_jax.diagnosis.course import Course
from ssl_jax.diagnosis.facts import Diagnosis, Facts
from ssl_jax.diagnosis.rows import LINE, ONE, POINT, RUNAWAY
from ssl_jax.diagnosis.signs import NEEDED, ROWS, TREND, Signs, recent, shared_by_views, trend

# --- Constants ------------------------------------------------------------------------------------

# All states look alike before so many steps. At 10 to 50 steps a run that will learn and one that
# will not have both passed rank 1.2 and spread .2 (directpred on digits and CIFAR-10).
EARLY = 100
# Decay times after which an unsupported mode is gone (e^-5); BYOL's mean is at 1.4 % of its start
# after 4.7.
FADED = 5
# A rise is a recovery only near the best value so far: a collapsed run's rank rises and falls far
# below it.
NEAR_BEST = 0.8


# --- The state ------------------------------------------------------------------------------------


def diagnose(history: dict, facts: Facts) -> Diagnosis:
    """Return the state of a run with these rows so far.

    `history` is that of `read_signs`. The state is "too early", except for a divergence, before
    EARLY steps or with fewer than ROWS rows. It is "too early" too where a row shows trouble
    (`states_of_rows`) but the run is recovering (`recovering`), or its largest eigenvalue falls
    and weight decay has not had its time.
    """
    course = Course(facts, history.get("dynamics"))
    course.extend({name: column for name, column in history.items() if name != "dynamics"})
    return diagnose_course(course)


def diagnose_course(course: Course) -> Diagnosis:
    """Return the state of a run with the rows that its course has read, at a constant cost."""
    facts, signs = course.facts, course.signs
    if course.bad is not None:
        return diagnose_divergence(course)
    if len(course) == 0:
        return Diagnosis(
            "too early",
            None,
            float("nan"),
            facts.dim,
            ("no row yet",),
            (),
            "unsure: nothing measured",
        )
    state, doubt = state_of_run(course)
    begun = state not in ("healthy", "too early")
    certainty, settles = certainty_of(state, course, doubt)
    return Diagnosis(
        state,
        int(signs.step[course.turn]) if begun else None,
        float(signs.rank[-1]),
        facts.dim,
        describe_signs(signs, state, course.dynamics, facts),
        advise(state, signs, facts, shared_by_views(course.dynamics)),
        certainty,
        settles,
    )


def state_of_run(course: Course) -> tuple[str, Doubt | None]:
    """Return the run's state, and why it is "too early" where it is."""
    if course.bad is not None:
        return "divergence", None
    if len(course) == 0:
        return "too early", Doubt("nothing measured", "", 0)
    signs, state = course.signs, str(course.kinds[-1])
    step = signs.step[-1]
    if state == "divergence":
        return state, None
    if len(course) < ROWS or step < EARLY:
        reason = f"{len(course)} rows, {step:.0f} steps; it takes {ROWS} rows and {EARLY} steps"
        by = max(EARLY, step + (ROWS - len(course)) * spacing(signs))
        return "too early", Doubt(reason, "there are as many", by)
    if state == "healthy" or over(course):
        return state, None
    if recovering(state, course):
        reason = "little variety so far, but it is rising"
        return "too early", newer(
            course, f"the effective rank passes {ONE[1]:g} or rises no more", reason
        )
    clock = decay_time(course.facts) * (1 if state == "dimensional collapse" else FADED)
    if step < clock and fading(signs.top):
        reason = (
            "the mean direction is still fading, for which weight decay takes about "
            f"{clock:.0f} steps"
        )
        return "too early", Doubt(reason, f"the effective rank passes {ONE[1]:g}", clock)
    return state, None


def fading(top: np.ndarray) -> bool:
    """Return whether the largest eigenvalue is below that of the start and falling.

    It counts as falling by the trend of the recent part or of the last few rows.
    """
    return top[-1] < 1 and min(trend(recent(top)), trend(top[-ROWS - 1 :])) < -TREND


def recovering(state: str, course: Course) -> bool:
    """Return whether what is too small is rising, and about as large as it has ever been."""
    signs = course.signs
    rank, spread = signs.rank[-1] - 1, 1 - signs.mean[-1]
    if rank >= NEAR_BEST * (course.best_rank - 1) and trend(recent(signs.rank)) > TREND:
        return True
    near = spread >= NEAR_BEST * (1 - course.best_mean)
    return state == "complete collapse" and near and trend(recent(signs.mean)) < -TREND


def diagnose_divergence(course: Course) -> Diagnosis:
    """Return the diagnosis of a run in which a number became nan or infinite.

    Its rank is that of the rows before.
    """
    row, signs, facts = course.bad_row(), course.signs, course.facts
    found = ", ".join(name for name in NEEDED if not np.isfinite(row[name])).replace("_", " ")
    return Diagnosis(
        "divergence",
        int(row["step"]) if np.isfinite(row["step"]) else None,
        float(signs.rank[-1]) if len(course) else float("nan"),
        facts.dim,
        (f"{found} not finite at step {row['step']:.0f}",),
        advise("divergence", signs, facts),
        "sure: not a number any more",
    )


# --- In words -------------------------------------------------------------------------------------


def describe_signs(signs: Signs, state: str, dynamics: dict, facts: Facts) -> tuple[str, ...]:
    """Return the signs as sentences, the decisive one first.

    Args:
        signs: the run's signs.
        state: the run's state.
        dynamics: arrays of dynamics.npz, or none.
        facts: the run's configuration.

    Returns:
        One sentence for each sign.
    """
    direction = {1: "rising", 0: "steady", -1: "falling"}
    way = [
        direction[int(np.sign(t) * (abs(t) > TREND))]
        for t in map(trend, map(recent, (signs.rank, signs.top)))
    ]
    lines = [
        f"effective rank {signs.rank[-1]:.2f} of {facts.dim}, {way[0]}; beside the mean direction "
        f"{signs.content[-1]:.1f} (a line: 1; alarm under {LINE[0]:g})",
        f"mean cosine between the projections of different images {signs.mean[-1]:.2f} (one "
        f"point: 1; alarm over {POINT[0]:g})",
        f"largest eigenvalue {signs.top[-1]:.3g} times what it was at the start, {way[1]}",
        f"loss {signs.loss[-1]:.4g}, at the start {signs.loss[0]:.4g}",
    ]
    if state == "divergence":
        limit = f" (alarm over {RUNAWAY:g})" if facts.sees_scale else ""
        lines.insert(0, f"predictor {signs.weights[-1]:.3g} times the identity's norm{limit}")
    if "predictor_eigenvalues" in dynamics and len(p := dynamics["predictor_eigenvalues"]):
        alive = int((p[-1] > 0.1 * max(p[-1].max(), 1e-12)).sum())
        lines.append(
            f"{alive} of {facts.dim} eigenvalues of the predictor above a tenth of its largest"
        )
    return tuple(lines)
