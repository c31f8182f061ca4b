"""What ails a pretraining run: a state, since when, by which signs, what to turn and by how much. Pure NumPy.

It reads the numbers that every run logs. Two of them are enough to tell the states apart, because of what they are:

    mean share  m = ||E u||² for u = z / ||z||, which is the mean cosine between the projections of two images, and
                1 - spread² by the relative spread (exactly so where all D coordinates vary alike). Near 1: one point.
                dynamics.npz has ||E z||² / E ||z||² in its place, the same where projections are of one length.
    content     the effective rank of what is left beside the mean. F = E[z zᵀ] is not centred: it has the mean
                direction, with a share m of its trace, and the rest, with effective rank r_c. By the chain rule of
                entropy log rank(F) = h(m) + (1 - m) log r_c, with h(m) = -m log m - (1 - m) log(1 - m), so that

                    r_c = exp((log rank - h(m)) / (1 - m)), at least 1.                      (`signs.content_rank`)

                Near 1: a line. A low rank of F alone says little: a healthy run of the replication begins at rank 1
                (all of it mean), and the small runs of this project learn at 3 to 5 of 64.

Whether the largest eigenvalue of F has grown since the start parts a mode that runs away from dimensions that fade. The
advice is of two kinds, and says which: *theory* is `dynamics.theory` with the run's own settings (the flow of one
eigenvalue s of F and p of the predictor under the Euclidean loss; the images' loss is the cosine), *experience* is what
was measured: Tian et al. 2021 (arXiv 2102.06810), its replication (Höppe et al. 2022), this project's results.
"""

import numpy as np

from ssl_jax.diagnosis.advice import advise, decay_time
from ssl_jax.diagnosis.facts import Diagnosis, Facts
from ssl_jax.diagnosis.signs import NEEDED, RECENT, ROWS, TREND, Signs, latched, read_signs, recent, trend

# --- Constants --------------------------------------------------------------------------------------------

# Of each pair the first is where an alarm begins and the second where it ends: between them lies the noise of a batch.

# Content under which it counts as a line: 1.5 is the effective rank of two directions of which one has 7/8. Stored runs
# (results/): the known collapses of configs/cifar10_small.py have 1.0, all that learn 2.3 to 6.7; of simsiam under
# strong decay (decay_ssl) those whose linear probe fell to 25-28 % (untrained: 37) have 1.0 to 1.44, those at 33-36 %
# 1.8 and 2.2.
LINE = (1.5, 1.8)
THIN = 2.5  # hardly more directions than a plane: no alarm, but no clean bill either
# Effective rank of F under which the mean and one direction more are all there is, or one of them alone. An alarm only
# where the largest eigenvalue holds: a healthy run may begin there, its mean fades.
ONE = (2.0, 2.3)
# Share of its start that the largest eigenvalue still has where one direction has taken over: .7 to 35 in the
# replication's symmetric SimSiam over 100 epochs, .2 to 5 in this project's three known collapses; runs that learn, and
# dimensions that fade, end at .002 to .06 of it. A single point keeps the length of its mean, so there it has to grow.
HELD = (0.25, 0.125)
GROWN = 4.0
# Mean cosine between different images over which all are one point for the cosine. The runs of this project that fail
# otherwise stop at .95, those that learn end at .75 or less; .99 leaves spread .1.
POINT = (0.99, 0.98)
# Fall of the largest eigenvalue to which nothing is left, where the loss sees lengths (Euclidean). Learning takes
# the mean's off: 190.8 to 1.5 (replication, BYOL), 1e-2.
VANISHED = 1e-4
# ||W_p||_F / sqrt(D), which is 1 for the identity, over which the weights have run off under the Euclidean loss. The
# theory's p stays under tau / a <= 1; measured 0.02 to 0.5. The cosine does not see it: 38 to 80 in runs of a predictor
# at 10 times the rate and without decay (table 3, mini), which learn as well as any.
RUNAWAY = 20.0
GROWN_LOSS = 100.0  # a loss that sees lengths so many times its first value; learning makes it smaller
GROWN_WEIGHTS = 100.0  # norm of a part so many times its first value, where dynamics.npz has it
# Before so many steps all states look alike: at 10 to 50 steps a run that will learn and one that will not have both
# passed rank 1.2 and spread .2 (directpred on digits and CIFAR-10).
EARLY = 100
FADED = 5  # decay times after which what nothing holds is gone (e^-5); BYOL's mean is at 1.4 % of its start after 4.7
NEAR_BEST = 0.8  # a rise is a recovery only near the best so far: a collapsed run's rank goes up and down far below it


# --- The state --------------------------------------------------------------------------------------------


def diagnose(history: dict, facts: Facts) -> Diagnosis:
    """The state of a run with these rows so far; cheap enough for every logged row.

    history: see `read_signs`. Before EARLY steps, or with fewer than ROWS rows, it is too early for anything but a
    divergence. An ill row (`ill`) that is recovering (`recovering`), or whose largest eigenvalue falls while weight
    decay has not had its time, is too early too.
    """
    bad = first_bad(history)
    if bad is not None:
        return divergence_by_number(history, facts, bad)
    signs = read_signs(history, facts.dim)
    if len(signs.step) == 0:
        return Diagnosis("too early", None, float("nan"), facts.dim, ("no row yet",), (), "unsure: nothing measured")
    kinds = ill(signs, history.get("dynamics") or {}, facts)
    state, doubt = settle(kinds, signs, facts)
    since = first_of_last(kinds != "healthy") if state not in ("healthy", "too early") else None
    return Diagnosis(
        state,
        None if since is None else int(signs.step[since]),
        float(signs.rank[-1]),
        facts.dim,
        tell_signs(signs, state, history.get("dynamics") or {}, facts),
        advise(state, signs, facts),
        how_sure(state, signs, kinds, doubt),
    )


def ill(signs: Signs, dynamics: dict, facts: Facts) -> np.ndarray:
    """(T,) the state that each row shows by itself, "healthy" or ill."""
    kinds = np.full(len(signs.step), "healthy", dtype="<U24")
    bounds = ((signs.content, LINE), (signs.rank, ONE))
    line, one = (latched(values < enter, values < leave) for values, (enter, leave) in bounds)
    point = latched(signs.mean > POINT[0], signs.mean > POINT[1])
    # Under a loss that sees lengths a direction that survives rests at an eigenvalue of its own, maybe above its start.
    enter, leave = (GROWN, GROWN / 2) if facts.sees_scale else HELD
    held = latched(signs.top > enter, signs.top > leave)
    kinds[line] = "dimensional collapse"
    kinds[(line | one) & held] = "rank-one explosion"
    kinds[point & ~(one & (signs.top > GROWN))] = "complete collapse"
    if facts.sees_scale:  # one point far from 0 is as bad, but so is 0
        kinds[signs.top < VANISHED] = "complete collapse"
        kinds[(signs.weights > RUNAWAY) | (signs.loss > GROWN_LOSS * abs(signs.loss[0]))] = "divergence"
    kinds[signs.step >= weights_grown(dynamics)] = "divergence"
    return kinds


def weights_grown(dynamics: dict) -> float:
    """The first step at which a part's weights are GROWN_WEIGHTS times as large as at the start; inf where none are."""
    norm = dynamics.get("parameter_norm")
    if norm is None or not len(norm):
        return np.inf
    over = (norm > GROWN_WEIGHTS * np.maximum(norm[:1], 1e-12)).any(axis=1)
    return float(dynamics["step"][np.argmax(over)]) if over.any() else np.inf


def settle(kinds: np.ndarray, signs: Signs, facts: Facts) -> tuple[str, str]:
    """(state, doubt) from what each row shows by itself."""
    state, step = str(kinds[-1]), signs.step[-1]
    if state == "divergence":
        return state, ""
    if len(kinds) < ROWS or step < EARLY:
        return "too early", f"{len(kinds)} rows, {step:.0f} steps; it takes {ROWS} rows and {EARLY} steps"
    if state == "healthy":
        return state, ""
    if step >= facts.total_steps:  # there is nothing to wait for
        return state, ""
    if recovering(state, signs):
        return "too early", "little variety so far, but it is rising"
    clock = decay_time(facts) * (1 if state == "dimensional collapse" else FADED)
    if step < clock and fading(signs.top):
        return "too early", f"the mean direction is still fading, for which weight decay takes about {clock:.0f} steps"
    return state, ""


def fading(top: np.ndarray) -> bool:
    """Whether the largest eigenvalue is under its start's and falling, lately or in the last few rows."""
    return top[-1] < 1 and min(trend(recent(top)), trend(top[-ROWS - 1 :])) < -TREND


def recovering(state: str, signs: Signs) -> bool:
    """Whether what is too small is on its way up, and about as large as it has ever been."""
    watched = [signs.rank - 1] + ([1 - signs.mean] if state == "complete collapse" else [])
    return any(trend(recent(w)) > TREND and w[-1] >= NEAR_BEST * w.max() for w in watched)


def first_of_last(flags: np.ndarray) -> int | None:
    """Where the unbroken run of True at the end begins; None where the last is False."""
    return None if not flags[-1] else int(np.flatnonzero(np.append(True, ~flags))[-1])


def first_bad(history: dict) -> int | None:
    """The first row with a number that is not finite; a blank loss is one."""
    shown = [np.asarray(history[name], np.float64) for name in NEEDED if name in history]
    rows = np.flatnonzero(~np.isfinite(np.array(shown)).all(axis=0)) if shown else np.zeros(0, int)
    return int(rows[0]) if len(rows) else None


def divergence_by_number(history: dict, facts: Facts, row: int) -> Diagnosis:
    """Of a run in which a number became nan or infinite."""
    found = [name for name in NEEDED if not np.isfinite(history[name][row])]
    step = history["step"][row]
    told = f"{', '.join(found).replace('_', ' ')} not finite at step {step:.0f}"
    before = {name: np.asarray(history[name], np.float64)[:row] for name in NEEDED}
    signs = read_signs(before, facts.dim)
    rank = float(signs.rank[-1]) if row else float("nan")
    since = int(step) if np.isfinite(step) else None
    advice = advise("divergence", signs, facts)
    return Diagnosis("divergence", since, rank, facts.dim, (told,), advice, "sure: not a number any more")


# --- In words ---------------------------------------------------------------------------------------------


def tell_signs(signs: Signs, state: str, dynamics: dict, facts: Facts) -> tuple[str, ...]:
    """What was measured, the telling one first."""
    direction = {1: "rising", 0: "steady", -1: "falling"}
    way = [direction[int(np.sign(t) * (abs(t) > TREND))] for t in map(trend, map(recent, (signs.rank, signs.top)))]
    lines = [
        f"effective rank {signs.rank[-1]:.2f} of {facts.dim}, {way[0]}; beside the mean direction "
        f"{signs.content[-1]:.1f} (a line: 1; alarm under {LINE[0]:g})",
        f"mean cosine between the projections of different images {signs.mean[-1]:.2f} (one point: 1; alarm over "
        f"{POINT[0]:g})",
        f"largest eigenvalue {signs.top[-1]:.3g} times what it was at the start, {way[1]}",
        f"loss {signs.loss[-1]:.4g}, at the start {signs.loss[0]:.4g}",
    ]
    if state == "divergence":
        limit = f" (alarm over {RUNAWAY:g})" if facts.sees_scale else ""
        lines.insert(0, f"predictor {signs.weights[-1]:.3g} times the identity's norm{limit}")
    if "predictor_eigenvalues" in dynamics and len(p := dynamics["predictor_eigenvalues"]):
        alive = int((p[-1] > 0.1 * max(p[-1].max(), 1e-12)).sum())
        lines.append(f"{alive} of {facts.dim} eigenvalues of the predictor above a tenth of its largest")
    return tuple(lines)


def how_sure(state: str, signs: Signs, kinds: np.ndarray, doubt: str) -> str:
    if state == "too early":
        return f"unsure: {doubt}"
    if state == "healthy":
        if signs.content[-1] < THIN or signs.rank[-1] < ONE[1]:
            return f"unsure: effective rank {signs.rank[-1]:.1f}, beside the mean {signs.content[-1]:.1f}, is little"
        lately = recent(kinds) != "healthy"
        return "likely: it was ill a short while ago" if lately.any() else "sure: no sign of collapse"
    if state == "divergence":
        return "likely: finite so far, but far beyond what any run that learns has"
    lasts = int((kinds != "healthy")[::-1].argmin()) if (kinds == "healthy").any() else len(kinds)
    if lasts < ROWS:
        return f"unsure: only the last {lasts} rows show it"
    if lasts < RECENT * len(kinds):
        return f"likely: the last {lasts} of {len(kinds)} rows show it"
    return f"sure: {lasts} of {len(kinds)} rows, all up to the last, show it"
