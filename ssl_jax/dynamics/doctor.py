"""What ails a pretraining run: a state, since when, by which signs, what to turn and by how much. Pure NumPy.

It reads the numbers that every run logs. Two of them are enough to tell the states apart, because of what they are:

    mean share  m = ||E u||² for u = z / ||z||, which is the mean cosine between the projections of two images, and
                1 - spread² by the relative spread (exactly so where all D coordinates vary alike). Near 1: one point.
                dynamics.npz has ||E z||² / E ||z||² in its place, the same where projections are of one length.
    content     the effective rank of what is left beside the mean. F = E[z zᵀ] is not centred: it has the mean
                direction, with a share m of its trace, and the rest, with effective rank r_c. By the chain rule of
                entropy log rank(F) = h(m) + (1 - m) log r_c, with h(m) = -m log m - (1 - m) log(1 - m), so that

                    r_c = exp((log rank - h(m)) / (1 - m)), at least 1.                            (`content_rank`)

                Near 1: a line. A low rank of F alone says little: a healthy run of the replication begins at rank 1
                (all of it mean), and the small runs of this project learn at 3 to 5 of 64.

Whether the largest eigenvalue of F has grown since the start parts a mode that runs away from dimensions that fade. The
advice is of two kinds, and says which: *theory* is `dynamics.theory` with the run's own settings (the flow of one
eigenvalue s of F and p of the predictor under the Euclidean loss; the images' loss is the cosine), *experience* is what
was measured: Tian et al. 2021 (arXiv 2102.06810), its replication (Höppe et al. 2022), this project's results.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.errors import UserError

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
GROWN_LOSS = 100.0  # a Euclidean loss so many times its first value; learning makes it smaller
GROWN_WEIGHTS = 100.0  # norm of a part so many times its first value, where dynamics.npz has it
# A single batch's F is noisy (it remembers 1/(1 - rho) = 1.4 batches): signs are medians of so many rows.
ROWS = 5
# Before so many steps all states look alike: at 10 to 50 steps a run that will learn and one that will not have both
# passed rank 1.2 and spread .2 (directpred on digits and CIFAR-10).
EARLY = 100
TREND = 2.0  # standard deviations of Kendall's statistic that count as a trend: one in 40 by chance, one-sided
RECENT = 1 / 3  # the part of the run whose trend is looked at, but at least 2 ROWS
FADED = 5  # decay times after which what nothing holds is gone (e^-5); BYOL's mean is at 1.4 % of its start after 4.7
NEAR_BEST = 0.8  # a rise is a recovery only near the best so far: a collapsed run's rank goes up and down far below it
USUAL_START = 1e3  # largest eigenvalue of a first row: 1 to 210 in all runs seen; over this it had run off by then
PUBLISHED_DECAY = 4e-4  # of the replication's weights, and of the predictor alone where it helped (its table 3)
MARGIN = 10  # by how much advice stays away from a border, where nothing better is known


class Facts(NamedTuple):
    """What of a run's configuration decides; fields as in configs/defaults.py. `tau`: target.tau, 0 for no average.
    A predictor's rate or decay of None is that of the rest. `optimizer`: the theory is of gradient descent, so that
    only "sgd" and "momentum" have numbers in it.
    """

    dim: int
    tau: float
    symmetric: bool
    kind: str
    learning_rate: float
    predictor_learning_rate: float | None
    weight_decay: float
    predictor_weight_decay: float | None
    momentum: float
    decay: str
    decay_scale: str
    loss_scale: float
    loss: str
    total_steps: int
    optimizer: str = "momentum"

    @property
    def learned(self) -> bool:
        return self.kind in ("mlp", "linear")


class Diagnosis(NamedTuple):
    """state: "too early" | "healthy" | "dimensional collapse" | "complete collapse" | "rank-one explosion" |
    "divergence". since: the step at which it set in, None where there is nothing to date. rank: effective rank of F,
    of `dim`. certainty: "sure" | "likely" | "unsure", a colon and why.
    """

    state: str
    since: int | None
    rank: float
    dim: int
    signs: tuple[str, ...]
    advice: tuple[str, ...]
    certainty: str

    @property
    def collapsed(self) -> bool:
        return self.state in COLLAPSED

    @property
    def words(self) -> str:
        """One line."""
        begun = "" if self.since is None else f" since step {self.since}"
        mend = f". To mend it: {self.advice[0].split(' (')[0]}" if self.advice else ""
        return f"{self.state}{begun} ({self.certainty.split(':')[0]}): {'; '.join(self.signs[:3])}{mend}"


COLLAPSED = ("dimensional collapse", "complete collapse", "rank-one explosion")
MEANING = {
    "too early": "too few steps, or a run still on its way up, to tell learning from collapse",
    "healthy": "different images have different projections, in more than one direction",
    "dimensional collapse": "the projections of all images lie (nearly) on one line: the network tells only on which "
    "side an image is, or how far out",
    "complete collapse": "all images have the same projection: the loss is low since nothing is left to predict",
    "rank-one explosion": "one direction has taken over the projections and its size does not shrink: the other "
    "dimensions are lost beside it",
    "divergence": "the numbers are not finite, or the weights have grown far beyond any use",
}


def content_rank(rank, mean_share):
    """Effective rank beside the mean direction (see the module), from 1; arrays broadcast."""
    m = np.clip(np.asarray(mean_share, np.float64), 1e-9, 1 - 1e-9)
    h = -m * np.log(m) - (1 - m) * np.log(1 - m)
    left = np.maximum(np.log(np.maximum(rank, 1.0)) - h, 0) / (1 - m)
    return np.exp(np.minimum(left, np.log(1e6)))


# --- The signs --------------------------------------------------------------------------------------------


class Signs(NamedTuple):
    """Arrays (T,): step as logged; the rest medians of the last ROWS rows. top is relative to the start of the run."""

    step: np.ndarray
    rank: np.ndarray
    mean: np.ndarray
    content: np.ndarray
    top: np.ndarray
    loss: np.ndarray
    weights: np.ndarray  # ||W_p||_F / sqrt(D)
    start: float  # the largest eigenvalue at the start


NEEDED = ("step", "loss", "relative_spread", "effective_rank", "top_eigenvalue")


def read_signs(history: dict, dim: int) -> Signs:
    """history: columns of metrics.csv, arrays (T,), and under "dynamics" the arrays of dynamics.npz, if there are."""
    if lacking := [name for name in NEEDED if name not in history]:
        raise UserError(f"history: lacks {', '.join(lacking)}, takes the columns of a pretraining run's metrics.csv")
    row = {name: np.asarray(history[name], np.float64) for name in NEEDED}
    smooth = {name: running_median(values) for name, values in row.items()}
    mean = running_median(mean_share(row["step"], row["relative_spread"], history.get("dynamics") or {}))
    weights = np.asarray(history.get("predictor_norm", np.full_like(row["step"], np.nan)), np.float64)
    rank, top = np.minimum(smooth["effective_rank"], dim), smooth["top_eigenvalue"]
    start = float(top[min(ROWS, len(top)) - 1]) if len(top) else np.nan
    return Signs(
        row["step"],
        rank,
        mean,
        np.minimum(content_rank(rank, mean), dim),
        top / max(start, np.finfo(np.float64).tiny),
        smooth["loss"],
        running_median(weights) / np.sqrt(dim),
        start,
    )


def mean_share(step: np.ndarray, spread: np.ndarray, dynamics: dict) -> np.ndarray:
    """Of the mean direction at each `step`: measured where dynamics.npz reaches, else by the spread."""
    by_spread = 1 - np.clip(spread, 0, 1) ** 2
    known = np.isfinite(dynamics.get("mean_share", np.zeros(0)))
    if known.sum() < 2:
        return by_spread
    where, share = dynamics["step"][known], dynamics["mean_share"][known]
    measured = np.interp(step, where, share, left=np.nan, right=np.nan)
    return np.where(np.isnan(measured), by_spread, measured)


def running_median(values: np.ndarray, width: int = ROWS) -> np.ndarray:
    """(T,) median of the last `width` values up to each, of fewer at the start; nan where one of them is nan."""
    if len(values) == 0:
        return values
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    first = [np.median(values[: i + 1]) for i in range(min(width - 1, len(values)))]
    return np.concatenate([first, np.median(windows[width - 1 :], axis=1)])


def trend(values: np.ndarray) -> float:
    """Kendall's statistic in standard deviations: above 0 where later values are larger; 0 of fewer than four."""
    values = values[:: max(1, len(values) // 60)]  # enough to see a trend by, and cheap
    n = len(values)
    if n < 4:
        return 0.0
    later = np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)]
    return float(later.sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


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
    # Under the Euclidean loss a direction that survives rests at an eigenvalue of its own, maybe above its start.
    enter, leave = (GROWN, GROWN / 2) if facts.loss == "euclidean" else HELD
    held = latched(signs.top > enter, signs.top > leave)
    kinds[line] = "dimensional collapse"
    kinds[(line | one) & held] = "rank-one explosion"
    kinds[point & ~(one & (signs.top > GROWN))] = "complete collapse"
    if facts.loss == "euclidean":  # it sees lengths: one point far from 0 is as bad, but so is 0
        kinds[signs.top < VANISHED] = "complete collapse"
        kinds[(signs.weights > RUNAWAY) | (signs.loss > GROWN_LOSS * signs.loss[0])] = "divergence"
    kinds[signs.step >= weights_grown(dynamics)] = "divergence"
    return kinds


def latched(enter: np.ndarray, stay: np.ndarray) -> np.ndarray:
    """True from where `enter` is, for as long as `stay` is."""
    held, inside = np.zeros(len(enter), bool), False
    for i in range(len(enter)):
        held[i] = inside = bool(enter[i] or (inside and stay[i]))
    return held


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


def recent(values: np.ndarray) -> np.ndarray:
    return values[-max(2 * ROWS, int(RECENT * len(values))) :]


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
        limit = f" (alarm over {RUNAWAY:g})" if facts.loss == "euclidean" else ""
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


# --- What to turn -----------------------------------------------------------------------------------------


def advise(state: str, signs: Signs, facts: Facts) -> tuple[str, ...]:
    """Sentences, the surest first: which knob, from what to what, why, and whether by theory or by experience."""
    if state == "divergence":
        return slower(signs, facts)
    if state not in COLLAPSED:
        return ()
    parts = (less_decay, an_average, asymmetric, learned, quicker_predictor, decay_on_the_predictor_alone)
    lines = [line for part in parts if (line := part(facts))]
    return tuple(lines) or (
        "Change the seed, or train longer: every knob that is known to matter already stands where it should",
    )


def flow_of(facts: Facts):
    """(flow, time of a step) of `theory.mapping`, with c = 2 loss_scale for the two directions of the views: of the
    cosine too, since -cos(p, z) + 1 = ||u - v||² / 2 of the unit vectors. None where the theory has no such run.
    """
    from ssl_jax.dynamics import theory

    if facts.optimizer not in ("sgd", "momentum"):
        return None
    momentum = facts.momentum if facts.optimizer == "momentum" else 0.0
    kept = ("learning_rate", "predictor_learning_rate", "weight_decay", "predictor_weight_decay", "decay")
    settings = {name: getattr(facts, name) for name in (*kept, "decay_scale")}
    try:
        return theory.mapping(
            **settings, tau=facts.tau if facts.tau < 1 else 0.0, momentum=momentum, loss_scale=2 * facts.loss_scale
        )
    except UserError:  # a rate of 0, say
        return None


def decay_time(facts: Facts) -> float:
    """Steps in which weight decay takes a mode that nothing holds to 1/e: 1 / (2 η_s) of the flow's time. 0 without."""
    found = flow_of(facts)
    return 1 / (2 * found[0].eta_s * found[1]) if found and found[0].eta_s > 0 else 0.0


def less_decay(facts: Facts) -> str:
    """Above the critical decay no mode survives: η_s is proportional to weight_decay."""
    from ssl_jax.dynamics import theory

    found = flow_of(facts)
    critical = float(theory.critical_decay())
    if not found or found[0].eta_s <= critical:
        return ""
    border = facts.weight_decay * critical / found[0].eta_s
    return (
        f"Lower optimizer.weight_decay from {facts.weight_decay:g} to {border / MARGIN:.2g}: at {border:.3g} and above "
        f"no direction of the projections survives (theory: decay eta_s = {found[0].eta_s:.3g}, critical "
        f"tau²/(4a) = {critical:g}, lower with strong augmentations)"
    )


def an_average(facts: Facts) -> str:
    """The replication's average remembers 250 of 39 000 steps, this project's small runs 100 of 936."""
    if facts.tau > 0:
        return ""
    tau = 1 - float(np.clip(10 / max(facts.total_steps, 1), 0.004, 0.1))
    return (
        f"Average the target: target.tau from 0 to {tau:.3g}, a memory of {1 / (1 - tau):.0f} of your "
        f"{facts.total_steps} steps (experience: symmetric predictor 20.3 % without, 85.7 % with, replication, "
        "CIFAR-10; theory: a target that lags behind shrinking weights is larger than they are, tau > 1, which raises "
        "the critical decay tau²/(4a))"
    )


def asymmetric(facts: Facts) -> str:
    if not (facts.symmetric and facts.learned):
        return ""
    without = "79.4 % against 20.3 %" if facts.tau == 0 else "84.2 % against 85.7 %, so expect little"
    return (
        "Leave the predictor as it is learned: predictor.symmetric from True to False (experience: "
        f"{without}, replication, CIFAR-10; the theory has no number for it)"
    )


def decay_on_the_predictor_alone(facts: Facts) -> str:
    """η_s = 0 < η_p: `theory.collapses` is False for every start, and s grows at `theory.asymptotic_growth`. The decay
    is that of the published success, or the run's own where that is smaller.
    """
    from ssl_jax.dynamics import theory

    kept = min(_predictor(facts, "weight_decay"), PUBLISHED_DECAY)
    found = flow_of(facts._replace(weight_decay=0.0, predictor_weight_decay=kept))
    if not (found and facts.learned and facts.tau == 0 and facts.weight_decay > 0 and kept > 0):
        return ""
    flow, time = found
    growth = float(theory.asymptotic_growth(alpha_p=flow.alpha_p, eta_p=flow.eta_p)) * time
    return (
        f"Decay the predictor alone, weakly: optimizer.weight_decay from {facts.weight_decay:g} to 0 with "
        f"optimizer.predictor.weight_decay={kept:g} (theory: with eta_s = 0 < eta_p no direction collapses; but there "
        f"is no finite resting point, eigenvalues grow by up to {growth:.2g} a step; experience: symmetric SimSiam "
        "79.1 % against 20.3 % with a predictor at 10 times the rate, replication, CIFAR-10)"
    )


def learned(facts: Facts) -> str:
    if facts.learned or facts.tau > 0:
        return ""
    return (
        f"Or learn the predictor: predictor.kind from {facts.kind!r} to 'linear' (experience: without average, "
        "table 2 at mini scale, ridge probe 34 to 36 % against 15 to 24 % of direct_pred; untrained 36 %)"
    )


def quicker_predictor(facts: Facts) -> str:
    """At the saddle s₋ = η_p p₋² / (α_p η_s): under it a mode dies. It falls with 1 / α_p where η_p is kept, but rises
    with η_p; so the rate goes up and, where the decay is multiplied by the rate, the decay down.
    """
    from ssl_jax.dynamics import theory

    found, rate = flow_of(facts), _predictor(facts, "learning_rate")
    if not (found and facts.learned and 0 < found[0].eta_s < theory.critical_decay() and found[0].eta_p > 0):
        return ""
    flow, low = found[0], float(theory.roots(eta_s=found[0].eta_s)[0])
    border = float(theory.height(low, alpha_p=flow.alpha_p, eta_p=flow.eta_p, eta_s=flow.eta_s))
    decay, by_rate = _predictor(facts, "weight_decay"), facts.decay == "coupled" or facts.decay_scale == "lr"
    keep = f" and optimizer.predictor.weight_decay from {decay:g} to {decay / MARGIN:g}" if by_rate else ""
    return (
        f"A quicker predictor: optimizer.predictor.learning_rate from {rate:g} to {MARGIN * rate:g}{keep} (theory: a "
        f"direction survives only above an eigenvalue of {border:.2g}, and this makes it {border / MARGIN:.2g}; a "
        "stronger decay of the predictor alone would raise it)"
    )


def slower(signs: Signs, facts: Facts) -> tuple[str, ...]:
    """A step on the predictor sees a quadratic of curvature c s, s the largest eigenvalue of F; heavy ball is stable on
    it while rate * c * s < 2 (1 + momentum).
    """
    rate, momentum = facts.learning_rate, facts.momentum if facts.optimizer == "momentum" else 0.0
    why = "experience: between 0.03 and 0.2 with momentum 0.9 all methods of this project train"
    to = min(rate / MARGIN, 0.1)
    if facts.loss == "euclidean" and facts.learned and 0 < signs.start < USUAL_START:
        border = 2 * (1 + momentum) / (2 * facts.loss_scale * signs.start)
        to = min(to, border / 2)
        why = f"theory: the predictor's steps are unstable above {border:.2g}, by an eigenvalue of {signs.start:.3g}"
    line = f"Lower optimizer.learning_rate from {rate:g} to {to:.2g} ({why})"
    fast = _predictor(facts, "learning_rate")
    own = f"Lower optimizer.predictor.learning_rate from {fast:g} to {min(fast, rate) / MARGIN:.2g} with it"
    return (line, own) if facts.learned and fast > rate else (line,)


def _predictor(facts: Facts, name: str) -> float:
    own = getattr(facts, f"predictor_{name}")
    return getattr(facts, name) if own is None else own
