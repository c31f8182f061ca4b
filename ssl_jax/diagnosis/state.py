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
eigenvalue of F has grown since the start. Advice is of two kinds, and says which. *Theory* is
`dynamics.theory` with the run's own settings: the flow of one eigenvalue s of F and p of the
predictor under the Euclidean loss, while image runs use the cosine. *Experience* is what was
measured: Tian et al. 2021 (arXiv 2102.06810), its replication (Höppe et al. 2022), and this
project's results.
"""

import numpy as np

from ssl_jax.diagnosis.advice import advise, decay_time
from ssl_jax.diagnosis.facts import Diagnosis, Facts
from ssl_jax.diagnosis.signs import (
    NEEDED,
    RECENT,
    ROWS,
    TREND,
    Signs,
    latched,
    read_signs,
    recent,
    trend,
)

# --- Constants ------------------------------------------------------------------------------------

# Of each pair, an alarm begins at the first and ends at the second. The noise of a batch is smaller
# than the gap.

# Content below which projections count as a line. 1.5 is the effective rank of two directions of
# which one has 7/8. Stored runs (results/): the known collapses of configs/cifar10_small.py have
# 1.0, all that learn 2.3 to 6.7. Of simsiam under strong decay (decay_ssl), those whose linear
# probe fell to 25-28 % (untrained: 37) have 1.0 to 1.44, those at 33-36 % have 1.8 and 2.2.
LINE = (1.5, 1.8)
THIN = 2.5  # hardly more directions than a plane: no alarm, but no certainty either
# Effective rank of F below which it holds no more than the mean and one direction. It raises an
# alarm only where the largest eigenvalue holds: a healthy run may begin there, but its mean fades.
ONE = (2.0, 2.3)
# Largest eigenvalue, divided by that at the start, where one direction has taken over. It is .7 to
# 35 in the replication's symmetric SimSiam over 100 epochs, .2 to 5 in this project's three known
# collapses. Runs that learn, and dimensions that fade, end at .002 to .06. A single point keeps the
# length of its mean, so there the eigenvalue has to grow (GROWN).
HELD = (0.25, 0.125)
GROWN = 4.0
# Mean cosine between different images above which the cosine sees one point. Runs of this project
# that fail otherwise stop at .95, those that learn end at .75 or less. .99 leaves a spread of .1.
POINT = (0.99, 0.98)
# Largest eigenvalue, divided by that at the start, below which nothing is left where the loss
# depends on lengths (Euclidean). Learning removes the mean's: 190.8 to 1.5 (replication, BYOL),
# 1e-2.
VANISHED = 1e-4
# ||W_p||_F / sqrt(D), 1 for the identity, above which the weights have diverged under the Euclidean
# loss. The theory's p stays below tau / a <= 1; measured were 0.02 to 0.5. The cosine does not
# depend on it: 38 to 80 in runs of a predictor at 10 times the rate and without decay (table 3,
# mini), which learn as well as any.
RUNAWAY = 20.0
# A loss that sees lengths, divided by its first value; learning makes it smaller.
GROWN_LOSS = 100.0
GROWN_WEIGHTS = 100.0  # norm of a part divided by its first value, where dynamics.npz has it
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
    """Return the state of a run with these rows so far; cheap enough for every logged row.

    `history` is that of `read_signs`. The state is "too early", except for a divergence, before
    EARLY steps or with fewer than ROWS rows. It is "too early" too where a row shows trouble
    (`states_of_rows`) but the run is recovering (`recovering`), or its largest eigenvalue falls
    and weight decay has not had its time.
    """
    bad = first_bad(history)
    if bad is not None:
        return diagnose_divergence(history, facts, bad)
    signs = read_signs(history, facts.dim)
    if len(signs.step) == 0:
        return Diagnosis(
            "too early",
            None,
            float("nan"),
            facts.dim,
            ("no row yet",),
            (),
            "unsure: nothing measured",
        )
    kinds = states_of_rows(signs, history.get("dynamics") or {}, facts)
    state, doubt = state_of_run(kinds, signs, facts)
    since = first_of_last(kinds != "healthy") if state not in ("healthy", "too early") else None
    return Diagnosis(
        state,
        None if since is None else int(signs.step[since]),
        float(signs.rank[-1]),
        facts.dim,
        describe_signs(signs, state, history.get("dynamics") or {}, facts),
        advise(state, signs, facts),
        describe_certainty(state, signs, kinds, doubt),
    )


def states_of_rows(signs: Signs, dynamics: dict, facts: Facts) -> np.ndarray:
    """Return the state that each row shows by itself.

    Args:
        signs: the run's signs.
        dynamics: arrays of dynamics.npz, or none.
        facts: the run's configuration.

    Returns:
        Names of states, (T,): "healthy", a kind of collapse, or "divergence".
    """
    kinds = np.full(len(signs.step), "healthy", dtype="<U24")
    bounds = ((signs.content, LINE), (signs.rank, ONE))
    line, one = (latched(values < enter, values < leave) for values, (enter, leave) in bounds)
    point = latched(signs.mean > POINT[0], signs.mean > POINT[1])
    # Under a loss that sees lengths a direction that survives ends at an eigenvalue of its own,
    # perhaps above its start.
    enter, leave = (GROWN, GROWN / 2) if facts.sees_scale else HELD
    held = latched(signs.top > enter, signs.top > leave)
    kinds[line] = "dimensional collapse"
    kinds[(line | one) & held] = "rank-one explosion"
    kinds[point & ~(one & (signs.top > GROWN))] = "complete collapse"
    if facts.sees_scale:  # one point far from 0 is as bad, but so is 0
        kinds[signs.top < VANISHED] = "complete collapse"
        kinds[(signs.weights > RUNAWAY) | (signs.loss > GROWN_LOSS * abs(signs.loss[0]))] = (
            "divergence"
        )
    kinds[signs.step >= weights_grown(dynamics)] = "divergence"
    return kinds


def weights_grown(dynamics: dict) -> float:
    """Return the first step at which weights are GROWN_WEIGHTS times as large as at the start.

    The weights are those of one part of the network. It is inf where there is no such step.
    """
    norm = dynamics.get("parameter_norm")
    if norm is None or not len(norm):
        return np.inf
    over = (norm > GROWN_WEIGHTS * np.maximum(norm[:1], 1e-12)).any(axis=1)
    return float(dynamics["step"][np.argmax(over)]) if over.any() else np.inf


def state_of_run(kinds: np.ndarray, signs: Signs, facts: Facts) -> tuple[str, str]:
    """Return the run's state and the doubt about it.

    Args:
        kinds: the state that each row shows by itself, (T,).
        signs: the run's signs.
        facts: the run's configuration.

    Returns:
        The state, and the reason for "too early" (else "").
    """
    state, step = str(kinds[-1]), signs.step[-1]
    if state == "divergence":
        return state, ""
    if len(kinds) < ROWS or step < EARLY:
        return (
            "too early",
            f"{len(kinds)} rows, {step:.0f} steps; it takes {ROWS} rows and {EARLY} steps",
        )
    if state == "healthy":
        return state, ""
    if step >= facts.total_steps:  # there is nothing to wait for
        return state, ""
    if recovering(state, signs):
        return "too early", "little variety so far, but it is rising"
    clock = decay_time(facts) * (1 if state == "dimensional collapse" else FADED)
    if step < clock and fading(signs.top):
        return (
            "too early",
            (
                "the mean direction is still fading, for which weight decay takes about "
                f"{clock:.0f} steps"
            ),
        )
    return state, ""


def fading(top: np.ndarray) -> bool:
    """Return whether the largest eigenvalue is below that of the start and falling.

    It counts as falling by the trend of the recent part or of the last few rows.
    """
    return top[-1] < 1 and min(trend(recent(top)), trend(top[-ROWS - 1 :])) < -TREND


def recovering(state: str, signs: Signs) -> bool:
    """Return whether what is too small is rising, and about as large as it has ever been."""
    watched = [signs.rank - 1] + ([1 - signs.mean] if state == "complete collapse" else [])
    return any(trend(recent(w)) > TREND and w[-1] >= NEAR_BEST * w.max() for w in watched)


def first_of_last(flags: np.ndarray) -> int | None:
    """Return where the unbroken run of True at the end begins; None where the last is False."""
    return None if not flags[-1] else int(np.flatnonzero(np.append(True, ~flags))[-1])


def first_bad(history: dict) -> int | None:
    """Return the first row with a number that is not finite; a blank loss is one."""
    shown = [np.asarray(history[name], np.float64) for name in NEEDED if name in history]
    rows = np.flatnonzero(~np.isfinite(np.array(shown)).all(axis=0)) if shown else np.zeros(0, int)
    return int(rows[0]) if len(rows) else None


def diagnose_divergence(history: dict, facts: Facts, row: int) -> Diagnosis:
    """Return the diagnosis of a run in which a number became nan or infinite.

    Args:
        history: that of `read_signs`.
        facts: the run's configuration.
        row: the first row with such a number.

    Returns:
        The diagnosis, with the rank of the rows before.
    """
    found = [name for name in NEEDED if not np.isfinite(history[name][row])]
    step = history["step"][row]
    sign = f"{', '.join(found).replace('_', ' ')} not finite at step {step:.0f}"
    before = {name: np.asarray(history[name], np.float64)[:row] for name in NEEDED}
    signs = read_signs(before, facts.dim)
    rank = float(signs.rank[-1]) if row else float("nan")
    since = int(step) if np.isfinite(step) else None
    advice = advise("divergence", signs, facts)
    return Diagnosis(
        "divergence", since, rank, facts.dim, (sign,), advice, "sure: not a number any more"
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


def describe_certainty(state: str, signs: Signs, kinds: np.ndarray, doubt: str) -> str:
    """Return how certain a state is.

    Args:
        state: the run's state.
        signs: the run's signs.
        kinds: the state that each row shows by itself, (T,).
        doubt: the reason for "too early".

    Returns:
        "sure", "likely" or "unsure", a colon and the reason.
    """
    if state == "too early":
        return f"unsure: {doubt}"
    if state == "healthy":
        if signs.content[-1] < THIN or signs.rank[-1] < ONE[1]:
            rank, content = signs.rank[-1], signs.content[-1]
            return f"unsure: effective rank {rank:.1f}, beside the mean {content:.1f}, is little"
        lately = recent(kinds) != "healthy"
        return (
            "likely: it showed trouble a short while ago"
            if lately.any()
            else "sure: no sign of collapse"
        )
    if state == "divergence":
        return "likely: finite so far, but far beyond what any run that learns has"
    lasts = int((kinds != "healthy")[::-1].argmin()) if (kinds == "healthy").any() else len(kinds)
    if lasts < ROWS:
        return f"unsure: only the last {lasts} rows show it"
    if lasts < RECENT * len(kinds):
        return f"likely: the last {lasts} of {len(kinds)} rows show it"
    return f"sure: {lasts} of {len(kinds)} rows, all up to the last, show it"
