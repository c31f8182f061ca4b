"""The pretraining step of every method: BYOL, SimSiam, DirectPred, DirectCopy.

They differ in three things only, all handed in: the predictor (learned or in closed form), whether
it is made symmetric, and how slowly the target follows (tau = 0: it *is* the online network).
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from ssl_jax.dynamics.collapse import relative_spread
from ssl_jax.dynamics.measure import measure_step
from ssl_jax.dynamics.penalties import opposing_penalty
from ssl_jax.linalg import second_moment
from ssl_jax.losses import OBJECTIVES
from ssl_jax.models import Network
from ssl_jax.optim import Optimizer
from ssl_jax.predictors import Predictor
from ssl_jax.train.state import PretrainState
from ssl_jax.types import Params, PyTree

# of a state: PretrainState, SupervisedState
Step = Callable[[Any, dict, jax.Array], tuple[Any, dict]]


def make_pretrain_step(
    *,
    views: Callable,
    network: Network,
    predictor: Predictor,
    optimizer: Optimizer,
    tau: Callable | None,
    objective: Callable = OBJECTIVES["cosine"],
    loss_scale: float = 1.0,
    tracked: bool = False,
    opposing: bool = False,
    axis_name: str | None = None,
) -> Step:
    """step(state, batch, key) -> (state, metrics), pure.

    batch: "image" (B, H, W, C) uint8 and "position" (B,) int32, the examples' places in the global
    batch, which their randomness follows. key: the run's, the same at every step and on every
    device. tau: step -> rate of the target average, or None for no average. objective: one of
    `losses.OBJECTIVES`, maybe regularised. loss_scale: c in c * objective (1: the replication, 2:
    the original authors' code). tracked: whether to add what `measure_step` says of the step.
    opposing: whether to measure where the weight decay pushes weights up. axis_name: the mapped
    device axis, None for a single device.
    metrics: "loss" (), "relative_spread" (); "loss_NAME" () for each term of an objective that has
    several; and "opposing_ratio", "opposing_fraction" () where measured.
    """
    mean = (lambda tree: jax.lax.pmean(tree, axis_name)) if axis_name else (lambda tree: tree)

    def step(state: PretrainState, batch: dict, key: jax.Array) -> tuple[PretrainState, dict]:
        view1, view2 = views(example_keys(key, state.step, batch["position"]), batch["image"])
        params = optimizer.pre(state.params, state.opt_state)

        def loss_of(params):
            # Each view passes by itself: BatchNorm's statistics are one view's, never both
            # together.
            z1, stats = network.train(params, state.stats, view1)
            z2, stats = network.train(params, stats, view2)
            z = z1, z2
            # Without an average the target is the online network, so its output is z, with no
            # gradient.
            t = jax.lax.stop_gradient(z if tau is None else target_projections(state, view1, view2))
            p = tuple(predictor.apply(params["predictor"], state.memory, one) for one in z)
            loss, terms = objective(p, z, t, state.memory, mean)
            return loss_scale * loss, (stats, z, t, terms)

        def target_projections(state, *images):
            return tuple(network.train(state.target, state.stats, image)[0] for image in images)

        (loss, (stats, z, t, terms)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        grads = mean(grads)
        penalty = opposing_of_step(optimizer, grads, state.opt_state, params) if opposing else {}
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params: Params = optax.apply_updates(params, updates)

        corr = mean(second_moment(*z))
        predictor_params, memory = predictor.update(
            params["predictor"], state.memory, corr, state.step
        )
        params = {**params, "predictor": predictor_params}

        target = state.target if tau is None else average(state.target, params, tau(state.step))
        several = {f"loss_{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
        metrics = (
            mean({"loss": loss, "relative_spread": relative_spread(z[0]), **several}) | penalty
        )
        if tracked:
            metrics |= measure_step(grads, updates, z, t, corr, mean)
        return PretrainState(
            state.step + 1, params, mean(stats), target, opt_state, memory
        ), metrics

    return step


def example_keys(key: jax.Array, step: jax.Array, position: jax.Array) -> jax.Array:
    """One key for each example (B,), a function of the run's key, the step and the place in the
    global batch.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda place: jax.random.fold_in(step_key, place))(position)


def opposing_of_step(
    optimizer: Optimizer, grads: Params, opt_state: PyTree, params: Params
) -> dict:
    """{"opposing_ratio", "opposing_fraction"} of the decay in this step. What it computes of the
    step the compiler finds again in `optimizer.update`, and computes once.
    """
    measured = opposing_penalty(params, *optimizer.apart(grads, opt_state, params))
    return {f"opposing_{name}": measured[name] for name in ("ratio", "fraction")}


def average(target, online, tau):
    """W_a <- W_a + (1 - tau)(W - W_a) over the parameters that the target has (Höppe et al. 2022,
    section 3.1).
    """
    shared = {part: online[part] for part in target}
    return jax.tree.map(lambda a, w: a + (1 - tau) * (w - a), target, shared)
