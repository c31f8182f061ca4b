"""Advice for a run in trouble: which setting to change, from what to what, and why.

Each sentence says whether it rests on theory or on experience. "theory" is that of the squared
distance, `dynamics.theory`, and has a say for losses that see scale alone; "theory of the cosine"
is `dynamics.cosine`, for those that do not.
"""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.diagnosis.facts import COLLAPSED, Facts
from ssl_jax.diagnosis.signs import Signs
from ssl_jax.errors import UserError

if TYPE_CHECKING:
    from ssl_jax.dynamics import theory

# Largest eigenvalue of a first row: 1 to 210 in all runs seen. A larger one has diverged already.
USUAL_START = 1e3
# Of the replication's weights, and of the predictor alone where it helped (its table 3).
PUBLISHED_DECAY = 4e-4
# The flow's time in a step of DirectPred without an average, above which the mean's direction
# overshoots: at 2 it grew 35-fold by the theory and buried the rest, at 0.2 8-fold and did not
# (benchmarks/cosine_forecast.py and runs on digits).
LONG_STEP = 0.5
MARGIN = 10  # the factor between advice and a border, where nothing better is known


def advise(
    state: str, signs: Signs, facts: Facts, shared: np.ndarray | None = None
) -> tuple[str, ...]:
    """Return advice for a run in a state, the most certain first.

    Args:
        state: the state of `Diagnosis`.
        signs: the run's signs.
        facts: the run's configuration.
        shared: correlation of the two views in each mode, (D,), where the run recorded it.

    Returns:
        Sentences; none for a state that needs no change.
    """
    if state == "divergence":
        return lower_rates(signs, facts)
    if state not in COLLAPSED:
        return ()
    lines = [
        lower_decay(facts),
        average_target(facts),
        allow_asymmetry(facts),
        shorten_steps(facts),
        learn_predictor(facts),
        lower_eps(facts, shared),
        raise_predictor_rate(facts),
        decay_predictor_alone(facts),
    ]
    lines = [line for line in lines if line]
    return tuple(lines) or (
        (
            "Change the seed, or train longer: every knob that is known to matter already stands "
            "where it should"
        ),
    )


def flow_of(facts: Facts) -> "tuple[theory.Flow, float] | None":
    """Return the flow of `theory.mapping` and the time of one step; None where the theory has none.

    c = 2 loss_scale, for the two directions of the views. This holds for the cosine too, because
    -cos(p, z) + 1 = ||u - v||² / 2 for the unit vectors u and v.
    """
    from ssl_jax.dynamics import theory

    if facts.optimizer not in ("sgd", "momentum"):
        return None
    momentum = facts.momentum if facts.optimizer == "momentum" else 0.0
    kept = (
        "learning_rate",
        "predictor_learning_rate",
        "weight_decay",
        "predictor_weight_decay",
        "decay",
    )
    settings = {name: getattr(facts, name) for name in (*kept, "decay_scale")}
    try:
        return theory.mapping(
            **settings,
            tau=facts.tau if facts.tau < 1 else 0.0,
            momentum=momentum,
            loss_scale=2 * facts.loss_scale,
        )
    except UserError:  # a rate of 0, say
        return None


def decay_time(facts: Facts) -> float:
    """Return the steps in which weight decay shrinks an unsupported mode to 1/e.

    It is 1 / (2 η_s) of the flow's time; 0 without decay.
    """
    found = flow_of(facts)
    return 1 / (2 * found[0].eta_s * found[1]) if found and found[0].eta_s > 0 else 0.0


def lower_decay(facts: Facts) -> str:
    """Advise less weight decay where it is above the critical decay, at which no mode survives.

    η_s is proportional to weight_decay. Under the cosine there is no critical decay.
    """
    from ssl_jax.dynamics import theory

    found = flow_of(facts)
    critical = float(theory.critical_decay())
    if not facts.sees_scale or not found or found[0].eta_s <= critical:
        return ""
    border = facts.weight_decay * critical / found[0].eta_s
    return (
        f"Lower optimizer.weight_decay from {facts.weight_decay:g} to {border / MARGIN:.2g}: at "
        f"{border:.3g} and above no direction of the projections survives (theory: decay eta_s = "
        f"{found[0].eta_s:.3g}, critical tau²/(4a) = {critical:g}, lower with strong augmentations)"
    )


def average_target(facts: Facts) -> str:
    """Advise an average of the target where there is none.

    Its memory is a tenth of the run, but at least 10 and at most 250 steps. The replication's
    average remembers 250 of 39 000 steps, this project's small runs 100 of 936.
    """
    if facts.tau > 0:
        return ""
    tau = 1 - float(np.clip(10 / max(facts.total_steps, 1), 0.004, 0.1))
    why = (
        "theory: a target that lags behind shrinking weights is larger than they are, tau > 1, "
        "which raises the critical decay tau²/(4a)"
        if facts.sees_scale
        else "theory of the cosine: an average changes no end, but delays the loss of modes"
    )
    return (
        f"Average the target: target.tau from 0 to {tau:.3g}, a memory of {1 / (1 - tau):.0f} of "
        f"your {facts.total_steps} steps (experience: symmetric predictor 20.3 % without, 85.7 % "
        f"with, replication, CIFAR-10; {why})"
    )


def allow_asymmetry(facts: Facts) -> str:
    """Advise a predictor that is not symmetrised."""
    if not (facts.symmetric and facts.learned):
        return ""
    without = (
        "79.4 % against 20.3 %" if facts.tau == 0 else "84.2 % against 85.7 %, so expect little"
    )
    return (
        "Leave the predictor as it is learned: predictor.symmetric from True to False (experience: "
        f"{without}, replication, CIFAR-10; the theory has no number for it)"
    )


def decay_predictor_alone(facts: Facts) -> str:
    """Advise weak weight decay of the predictor alone.

    With η_s = 0 < η_p `theory.collapses` is False for every start, and s grows at
    `theory.asymptotic_growth`. Under the cosine it is a predictor that learns ever quicker,
    `cosine.alpha_without_decay`. The decay is that of the published success, or the run's own where
    that is smaller.
    """
    from ssl_jax.dynamics import theory

    kept = min(_predictor(facts, "weight_decay"), PUBLISHED_DECAY)
    found = flow_of(facts._replace(weight_decay=0.0, predictor_weight_decay=kept))
    if not (found and facts.learned and facts.tau == 0 and facts.weight_decay > 0 and kept > 0):
        return ""
    flow, time = found
    if facts.sees_scale:
        growth = float(theory.asymptotic_growth(alpha_p=flow.alpha_p, eta_p=flow.eta_p)) * time
        why = (
            "theory: with eta_s = 0 < eta_p no direction collapses; but there is no finite resting "
            f"point, eigenvalues grow by up to {growth:.2g} a step"
        )
    else:
        quicker = 2 * flow.eta_p * time * facts.total_steps
        why = (
            "theory of the cosine: as a predictor that learns ever quicker, e to the "
            f"{quicker:.2g} times by the end at a constant rate"
        )
    return (
        f"Decay the predictor alone, weakly: optimizer.weight_decay from {facts.weight_decay:g} to "
        f"0 with optimizer.predictor.weight_decay={kept:g} ({why}; experience: symmetric SimSiam "
        "79.1 % against 20.3 % with a predictor at 10 times the rate, replication, CIFAR-10)"
    )


def learn_predictor(facts: Facts) -> str:
    """Advise a learned predictor in place of a closed form."""
    if facts.learned or facts.tau > 0:
        return ""
    return (
        f"Or learn the predictor: predictor.kind from {facts.kind!r} to 'linear' (experience: "
        "without average, table 2 at mini scale, ridge probe 34 to 36 % against 15 to 24 % of "
        "direct_pred; untrained 36 %)"
    )


def shorten_steps(facts: Facts) -> str:
    """Advise a lower learning rate for a predictor in closed form without an average, cosine loss.

    The mean's direction, which the views share whole, grows first. In long steps it overshoots.
    """
    found = flow_of(facts)
    if facts.sees_scale or facts.learned or facts.tau > 0 or not found or found[1] <= LONG_STEP:
        return ""
    rate = facts.learning_rate
    return (
        f"Lower optimizer.learning_rate from {rate:g} to {rate / MARGIN:g}: a step is "
        f"{found[1]:.2g} of the flow's time (theory of the cosine: in long steps the mean's "
        "direction overshoots in the first of them, and without an average twice as far; "
        "experience: directpred_noema on digits, effective rank 9.2 and 9.7 at rate 0.01 against "
        "1.0 to 1.7 at 0.1; CIFAR-10 at the mini scale, 1.5 to 1.9 against 1.1 to 1.6, no help)"
    )


def lower_eps(facts: Facts, shared: np.ndarray | None) -> str:
    """Advise a smaller eps of a predictor in closed form, a threshold under the cosine.

    A mode dies where q c_j <= eps, see `cosine.direct_spectrum`.

    Args:
        facts: the run's configuration.
        shared: correlation of the two views in each mode, (D,), where the run recorded it.

    Returns:
        The advice; "" where the theory has no spectrum, or a smaller eps gives no mode more.
    """
    from ssl_jax.dynamics import cosine

    if facts.sees_scale or facts.set_by is None:
        return ""
    power, eps, norm = facts.set_by
    if eps == 0:
        return ""
    least = eps / MARGIN
    why = "theory of the cosine: eps is a threshold on what the two views share of a mode"
    if norm == "max":
        why += f", which dies below {eps / (1 + eps):.2g} of what they share of the strongest"
    if shared is not None:
        now, then = (
            int((cosine.direct_spectrum(shared, power=power, eps=x, norm=norm) > 0).sum())
            for x in (eps, least)
        )
        if then <= now:
            return ""
        why += f"; by what was measured {now} of {facts.dim} modes live, with the smaller {then}"
    return f"Lower predictor.eps from {eps:g} to {least:g} ({why})"


def raise_predictor_rate(facts: Facts) -> str:
    """Advise a higher learning rate of the predictor.

    Under the cosine α_p s / p² at the start is the water that modes live of (`cosine.fate`), and
    with decay α_p acts as α_p e^(2 (η_p - η_s) t): the predictor's decay, which the rate
    multiplies, helps it, and below η_s the predictor stops.

    Under the squared distance a mode dies below the saddle's s₋ = η_p p₋² / (α_p η_s). It falls
    with 1 / α_p for constant η_p, but rises with η_p. So the rate is raised and, where the rate
    multiplies the decay, the decay is lowered.
    """
    from ssl_jax.dynamics import theory

    found, rate = flow_of(facts), _predictor(facts, "learning_rate")
    if not facts.sees_scale:
        return _quicker_under_the_cosine(facts, found, rate)
    if not (
        found
        and facts.learned
        and 0 < found[0].eta_s < theory.critical_decay()
        and found[0].eta_p > 0
    ):
        return ""
    flow, low = found[0], float(theory.roots(eta_s=found[0].eta_s)[0])
    border = float(theory.height(low, alpha_p=flow.alpha_p, eta_p=flow.eta_p, eta_s=flow.eta_s))
    decay, by_rate = (
        _predictor(facts, "weight_decay"),
        facts.decay == "coupled" or facts.decay_scale == "lr",
    )
    keep = (
        f" and optimizer.predictor.weight_decay from {decay:g} to {decay / MARGIN:g}"
        if by_rate
        else ""
    )
    return (
        f"A quicker predictor: optimizer.predictor.learning_rate from {rate:g} to "
        f"{MARGIN * rate:g}{keep} (theory: a direction survives only above an eigenvalue of "
        f"{border:.2g}, and this makes it {border / MARGIN:.2g}; a stronger decay of the predictor "
        "alone would raise it)"
    )


def _quicker_under_the_cosine(
    facts: Facts, found: "tuple[theory.Flow, float] | None", rate: float
) -> str:
    """Return the advice of `raise_predictor_rate` for a loss that sees no scale.

    Args:
        facts: the run's configuration.
        found: the flow and the time of a step, of `flow_of`.
        rate: the predictor's.

    Returns:
        The advice; "" where no predictor is learned, or the theory has no flow.
    """
    if not (found and facts.learned):
        return ""
    flow, decay = found[0], _predictor(facts, "weight_decay")
    slows, keep = "", ""
    if flow.eta_p < flow.eta_s:
        border = decay * flow.eta_s / flow.eta_p if flow.eta_p else facts.weight_decay
        slows = (
            f"; its decay eta_p = {flow.eta_p:.3g} below eta_s = {flow.eta_s:.3g} of the rest "
            "slows it as training goes on"
        )
        keep = f", and optimizer.predictor.weight_decay from {decay:g} to {border:.3g} or more"
    return (
        f"A quicker predictor: optimizer.predictor.learning_rate from {rate:g} to "
        f"{MARGIN * rate:g}{keep} (theory of the cosine: modes live of alpha_p s/p², the rate over "
        f"the rest's times the size of the features over the predictor's{slows})"
    )


def lower_rates(signs: Signs, facts: Facts) -> tuple[str, ...]:
    """Advise lower learning rates.

    A step on the predictor sees a quadratic of curvature c s, with s the largest eigenvalue of F.
    Heavy ball is stable on it while rate * c * s < 2 (1 + momentum).
    """
    rate, momentum = facts.learning_rate, facts.momentum if facts.optimizer == "momentum" else 0.0
    why = "experience: between 0.03 and 0.2 with momentum 0.9 all methods of this project train"
    to = min(rate / MARGIN, 0.1)
    if facts.sees_scale and facts.learned and 0 < signs.start < USUAL_START:
        border = 2 * (1 + momentum) / (2 * facts.loss_scale * signs.start)
        to = min(to, border / 2)
        why = (
            f"theory: the predictor's steps are unstable above {border:.2g}, by an eigenvalue of "
            f"{signs.start:.3g}"
        )
    line = f"Lower optimizer.learning_rate from {rate:g} to {to:.2g} ({why})"
    fast = _predictor(facts, "learning_rate")
    own = (
        f"Lower optimizer.predictor.learning_rate from {fast:g} to {min(fast, rate) / MARGIN:.2g} "
        "with it"
    )
    return (line, own) if facts.learned and fast > rate else (line,)


def _predictor(facts: Facts, name: str) -> float:
    """Return the predictor's own value of a setting, or the rest's where it has none."""
    own = getattr(facts, f"predictor_{name}")
    return getattr(facts, name) if own is None else own
