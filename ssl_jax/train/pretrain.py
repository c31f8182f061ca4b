"""The pretraining step of every method: BYOL, SimSiam, DirectPred, DirectCopy, IsoLoss.

They differ in four things only, all handed in: the predictor (learned or in closed form), whether
it is made symmetric, how slowly the target follows (tau = 0: it *is* the online network), and the
objective.
"""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ssl_jax.dynamics.collapse import relative_spread
from ssl_jax.dynamics.measure import measure_step, measure_views
from ssl_jax.dynamics.penalties import opposing_penalty
from ssl_jax.linalg import second_moment
from ssl_jax.losses import OBJECTIVES, Pair, PairLoss
from ssl_jax.models import Network
from ssl_jax.optim import Optimizer, Schedule
from ssl_jax.predictors import Predictor, recent_correlation
from ssl_jax.train.accumulate import in_micro_batches
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Batch, Mean, Metrics, Params, PyTree, Scalar, Step

# keys (B,), images (B, H, W, C) -> two views of each image
Views = Callable[[jax.Array, jax.Array], Pair]


def make_pretrain_step(
    *,
    views: Views,
    network: Network,
    predictor: Predictor,
    optimizer: Optimizer,
    tau: Schedule | None,
    objective: PairLoss = OBJECTIVES["cosine"],
    loss_scale: float = 1.0,
    tracked: int = 0,
    penalty: str = "",
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Step:
    """Build the pure function step(state, batch, key) -> (state, metrics).

    Its batch holds "image" (B, H, W, C) uint8 and "position" (B,) int32. A position is an example's
    place in the global batch, and the example's randomness follows it. Its key is the run's, the
    same at every step and on every device.

    Args:
        views: makes two views of each image, from keys (B,) and images (B, H, W, C).
        network: encoder and projector.
        predictor: learned or in closed form.
        optimizer: makes the step of a gradient.
        tau: step -> rate of the target average. None: no average, the target is the online network.
        objective: one of `losses.OBJECTIVES`, maybe regularised.
        loss_scale: c in c * objective. 1: the replication; 2: the original authors' code.
        tracked: whether to add what `measure_step` says of the step, and after how many steps each
            what `measure_views` says. 0: neither.
        penalty: the kind of the weight decay, of which `opposing_of_step` measures where it pushes
            weights up. "": nothing is measured.
        accumulate: number of micro-batches that a device's batch passes in, see `in_micro_batches`.
            Optimizer, target and predictor move once, by the gradient and the projections of all.
        axis_name: the mapped device axis. None: a single device.

    Returns:
        The step. Its metrics are
        loss (): loss_scale times the objective.
        relative_spread (): that of the first view's projections.
        loss_NAME (): each term of an objective that has several.
        The entries of `opposing_of_step`, where there is a `penalty`.
        All entries of `measure_step` and `measure_views`, where `tracked` asks for them.
    """
    mean: Mean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def step(state: PretrainState, batch: Batch, key: jax.Array) -> tuple[PretrainState, Metrics]:
        params = optimizer.pre(state.params, state.opt_state)

        def loss_of(
            params: Params, view1: jax.Array, view2: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, Pair, Pair, Metrics]]:
            # Each view passes by itself: BatchNorm's statistics are one view's, never both
            # together.
            z1, stats = network.train(params, state.stats, view1)
            z2, stats = network.train(params, stats, view2)
            z = z1, z2
            # Without an average the target is the online network, so its output is z, with no
            # gradient.
            t = z if tau is None else (target_projection(view1), target_projection(view2))
            t = jax.lax.stop_gradient(t)
            p = prediction(params, z1), prediction(params, z2)
            loss, terms = objective(p, z, t, state.memory, mean)
            return loss_scale * loss, (stats, z, t, terms)

        def prediction(params: Params, z: jax.Array) -> jax.Array:
            return predictor.apply(params["predictor"], state.memory, z)

        def target_projection(view: jax.Array) -> jax.Array:
            return network.train(state.target, state.stats, view)[0]

        def gradient_of(
            batch: Batch, n: jax.Array | int
        ) -> tuple[tuple[Params, jax.Array, Metrics, PyTree], tuple[Pair, Pair]]:
            pair = views(example_keys(key, state.step, batch["position"]), batch["image"])
            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, (stats, z, t, terms)), grads = gradient(params, *pair)
            return (grads, loss, terms, stats), (z, t)

        (grads, loss, terms, stats), (z, t) = in_micro_batches(gradient_of, batch, accumulate)
        grads: Params = mean(grads)
        opposing: Metrics = (
            opposing_of_step(optimizer, grads, state.opt_state, params, penalty) if penalty else {}
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params: Params = optax.apply_updates(params, updates)

        corr: jax.Array = mean(second_moment(*z))
        memory = state.memory
        if predictor.observe:
            memory = predictor.observe(memory, z, t, state.step, mean)
        predictor_params, memory = predictor.update(params["predictor"], memory, corr, state.step)
        params = {**params, "predictor": predictor_params}

        target = state.target if tau is None else average(state.target, params, tau(state.step))
        several = {f"loss_{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
        metrics: Metrics = (
            mean({"loss": loss, "relative_spread": relative_spread(z[0]), **several}) | opposing
        )
        if tracked:
            due = (state.step + 1) % tracked == 0
            metrics |= measure_step(grads, updates, z, t, corr, mean)
            metrics |= measure_views(recent_correlation(memory), z, due, mean)
        return PretrainState(
            state.step + 1, params, mean(stats), target, opt_state, memory
        ), metrics

    return step


def example_keys(key: jax.Array, step: jax.Array, position: jax.Array) -> jax.Array:
    """Return one key for each example.

    Args:
        key: the run's.
        step: (), steps taken before this one.
        position: (B,) int32, places in the global batch.

    Returns:
        Keys (B,), each a function of the key, the step and the example's place alone.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda place: jax.random.fold_in(step_key, place))(position)


def opposing_of_step(
    optimizer: Optimizer, grads: Params, opt_state: PyTree, params: Params, penalty: str
) -> Metrics:
    """Measure how much of this step's weight decay opposes it.

    RWD takes its share of theta - eta U, and PWD its own of theta before the step, so that neither
    ever makes a weight larger (the layer-wise paper, equation 8). For them it is also measured what
    WD would have done at the same weights, with the same gradients.

    What it computes of the step the compiler finds again in `optimizer.update`, and computes once.

    Args:
        optimizer: the step's.
        grads: gradients, a tree like params.
        opt_state: the optimizer's state before the step.
        params: weights at which the gradients were taken.
        penalty: "decoupled", "realtime" or "pre".

    Returns:
        opposing_ratio, opposing_fraction (): ratio and fraction of `opposing_penalty`, 0 for RWD
        and PWD.
        wd_opposing_ratio, wd_opposing_fraction (): those of WD, for RWD and PWD.
    """
    measured = opposing_penalty(params, *optimizer.apart(grads, opt_state, params))
    of_wd = {f"opposing_{name}": measured[name] for name in ("ratio", "fraction")}
    if penalty == "decoupled":
        return of_wd
    never = {name: jnp.zeros_like(value) for name, value in of_wd.items()}
    return never | {f"wd_{name}": value for name, value in of_wd.items()}


def average(target: Params, online: Params, tau: Scalar) -> Params:
    """Move the target towards the online network: W_a <- W_a + (1 - tau)(W - W_a).

    Höppe et al. 2022, section 3.1.

    Args:
        target: W_a, a dict of parts.
        online: W, a dict with at least the parts of the target.
        tau: rate of the average, from 0 (a copy of the online network) to 1 (no change).

    Returns:
        The new target, a tree like the old one.
    """
    shared: Params = {part: online[part] for part in target}
    return jax.tree.map(lambda a, w: a + (1 - tau) * (w - a), target, shared)
