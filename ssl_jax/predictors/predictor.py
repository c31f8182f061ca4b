"""The predictor, learned or written down, behind a few closures.

`memory` has "correlation": F (D, D), the running average of the projections' correlation, uncentred
(Tian et al. 2021, section 5; Höppe et al. 2022 eq. 7). The closed forms need it, and every kind
keeps it, since its spectrum is what tells learning from collapse. Where `rho` makes that memory
long, "recent" has the same average over the last batches, which `recent_correlation` returns: a
collapse must not hide behind old batches. Some kinds average more of each batch (`AVERAGED`), by
F's rule.
"""

# JAX and its relatives leave the types of arrays' members, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, nearest
from ssl_jax.linalg import cross_moment, matmul
from ssl_jax.models import MLPHead
from ssl_jax.models.layers import linear_init, standardised
from ssl_jax.predictors.direct import (
    EPS_MODES,
    NORMS,
    direct_copy,
    direct_pred,
    direct_set,
    optimal,
)
from ssl_jax.predictors.learned import symmetrise_linear, symmetrise_mlp
from ssl_jax.types import Mean, Params

Memory = dict[str, jax.Array]  # "correlation", "recent" (D, D), and what of `AVERAGED` is kept
Pair = tuple[jax.Array, jax.Array]  # one array (B, D) of each view
Step = jax.Array | int  # the 0-based number of an optimizer step
Init = Callable[[jax.Array], tuple[Params, Memory]]  # init(key) -> (params, memory)
# update(params, memory, corr (D, D), step) -> (params, memory)
Update = Callable[[Params, Memory, jax.Array, Step], tuple[Params, Memory]]
# observe(memory, z, t, step, mean) -> memory
Observe = Callable[[Memory, Pair, Pair, Step, Mean], Memory]
Regulate = Callable[[Params, Memory, Step], Params]  # regulate(params, memory, step) -> params
Write = Callable[[jax.Array], jax.Array]  # write(F (D, D)) -> W_p (D, D)
RECENT_RHO = 0.3  # of "recent", the published rho of F: a memory of 1.4 batches
LONG_RHO = 0.5  # above it, more than two batches, "recent" is kept beside F
# What a kind may average beside F, by its name in the memory: statistic(z, t) of the projections of
# both views and of the target's, (B, D) each.
AVERAGED: dict[str, Callable[[Pair, Pair], jax.Array]] = {
    # E z (D,), over both views
    "mean": lambda z, t: jnp.mean(jnp.concatenate(z), axis=0, dtype=jnp.float32),
    # E t zᵀ (D, D), the target of one view and the projection of the other
    "cross": lambda z, t: (cross_moment(t[1], z[0]) + cross_moment(t[0], z[1])) / 2,
}


class Predictor(NamedTuple):
    """What predicts the target's projections of one view from the online network's of the other.

    Both are (B, D).
    """

    # init(key) -> (params, memory)
    init: Init
    # apply(params, memory, z (B, D)) -> p (B, D)
    apply: Callable[[Params, Memory, jax.Array], jax.Array]
    # update(params, memory, corr (D, D), step) -> (params, memory), called once after each
    # optimizer step with the correlation of that step's batch and the 0-based step number
    update: Update
    # matrix(params) -> W_p (D, D), acting on column vectors: p = W_p z where `linear`, else what
    # stands for it
    matrix: Callable[[Params], jax.Array]
    # whether W_p is written down from the correlation. If not, gradients train it
    closed_form: bool
    # whether `apply` is nothing but a product with `matrix`
    linear: bool = True
    # observe(memory, z, t, step, mean) -> memory, called once before each `update` with the
    # projections and the target's of both views, (B, D) each, and the mean of a tree over all
    # devices. None: of each batch the correlation alone is kept
    observe: Observe | None = None


def make_predictor(kind: str, dim: int, **options: Any) -> Predictor:
    """Build the predictor `kind` on projections of `dim` numbers.

    The options and their defaults:

        mlp          hidden (512), symmetric (False), output_bias (False), axis_name (None),
                     head_norm ("batch"), standardise (False)
        linear       symmetric (False)
        direct_pred  eps (0.1), eps_mode ("relative"), floor (1e-4)
        direct_copy  eps (0.3)
        direct_set   power (0.5), eps (0.1), norm ("max")
        direct_*     centre (False), every (1), phase (0)
        optimal      ridge (0.01), every (1), phase (0)
        every kind   init ("pytorch"), rho (0.3)

    Args:
        kind: a key of `KINDS`.
        dim: D, the length of a projection.
        **options: options of the kind. rho in [0, 1) is how much of the old correlation is kept
            each step.

    Returns:
        The predictor (B, D) -> (B, D).

    Raises:
        UserError: the kind is unknown, or `dim` or an option is out of its range.
    """
    function = _function(kind)
    if dim < 1:
        raise UserError(f"projector.out: got {dim}, takes a whole number of at least 1")
    return function(dim, **options)


def recent_correlation(memory: Memory) -> jax.Array:
    """Return the projections' correlation (D, D) over the last batches: F where rho is small."""
    return memory.get("recent", memory["correlation"])


def options_of(kind: str) -> frozenset[str]:
    """Return the names of the options that the predictor `kind` takes."""
    parameters = inspect.signature(_function(kind)).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def _function(kind: str) -> Callable[..., Predictor]:
    if kind not in KINDS:
        raise UserError(f"predictor.kind: got {kind!r}, {nearest(kind, KINDS)}")
    return KINDS[kind]


def _mlp(
    dim: int,
    *,
    hidden: int = 512,
    symmetric: bool = False,
    output_bias: bool = False,
    init: str = "pytorch",
    axis_name: str | None = None,
    head_norm: str = "batch",
    standardise: bool = False,
    rho: float = 0.3,
) -> Predictor:
    if symmetric and standardise:
        raise UserError(
            "predictor.symmetric: got True, takes False with projector.standardise=True: a "
            "standardised product is not symmetric"
        )
    head = MLPHead(
        hidden,
        dim,
        output_bias=output_bias,
        preset=init,
        axis_name=axis_name,
        norm=head_norm,
        standardise=standardise,
    )

    def init_params(key: jax.Array) -> Params:
        return cast(Params, head.init(key, jnp.zeros((2, dim)), train=True)["params"])

    def apply(params: Params, memory: Memory, z: jax.Array) -> jax.Array:
        # The predictor is never evaluated, so its running statistics are not kept.
        return head.apply({"params": params}, z, train=True, mutable=["batch_stats"])[0]

    def matrix(params: Params) -> jax.Array:
        """Return W2 W1, without normalisation, bias and ReLU: as in the replication's Figure 2."""
        first, second = params["linear1"]["kernel"], params["linear2"]["kernel"]
        if standardise:
            first, second = standardised(first), standardised(second)
        return matmul(first, second).T

    begin, update = _with_memory(
        dim, rho, init_params, _after_each_step(symmetrise_mlp if symmetric else None)
    )
    return Predictor(begin, apply, update, matrix, closed_form=False, linear=False)


def _linear(
    dim: int, *, symmetric: bool = False, init: str = "pytorch", rho: float = 0.3
) -> Predictor:
    regulate = _after_each_step(symmetrise_linear if symmetric else None)
    return _one_layer(dim, rho, init, regulate, closed_form=False)


def _direct_pred(
    dim: int,
    *,
    eps: float = 0.1,
    eps_mode: str = "relative",
    floor: float = 1e-4,
    centre: bool = False,
    every: int = 1,
    phase: int = 0,
    init: str = "pytorch",
    rho: float = 0.3,
) -> Predictor:
    _check_eps(eps)
    if eps_mode not in EPS_MODES:
        raise UserError(
            f"predictor.eps_mode: got {eps_mode!r}, takes one of {', '.join(EPS_MODES)}"
        )
    return in_closed_form(
        dim,
        lambda corr: direct_pred(corr, eps, eps_mode, floor),
        centre=centre,
        every=every,
        phase=phase,
        init=init,
        rho=rho,
    )


def _direct_copy(
    dim: int,
    *,
    eps: float = 0.3,
    centre: bool = False,
    every: int = 1,
    phase: int = 0,
    init: str = "pytorch",
    rho: float = 0.3,
) -> Predictor:
    _check_eps(eps)
    return in_closed_form(
        dim,
        lambda corr: direct_copy(corr, eps),
        centre=centre,
        every=every,
        phase=phase,
        init=init,
        rho=rho,
    )


def _direct_set(
    dim: int,
    *,
    power: float = 0.5,
    eps: float = 0.1,
    norm: str = "max",
    centre: bool = False,
    every: int = 1,
    phase: int = 0,
    init: str = "pytorch",
    rho: float = 0.3,
) -> Predictor:
    _check_eps(eps)
    if norm not in NORMS:
        raise UserError(f"predictor.norm: got {norm!r}, {nearest(norm, NORMS)}")
    if not 0 < power < float("inf"):
        raise UserError(f"predictor.power: got {power}, takes a number above 0")
    return in_closed_form(
        dim,
        lambda corr: direct_set(corr, power, eps, norm),
        centre=centre,
        every=every,
        phase=phase,
        init=init,
        rho=rho,
    )


def _optimal(
    dim: int,
    *,
    ridge: float = 0.01,
    every: int = 1,
    phase: int = 0,
    init: str = "pytorch",
    rho: float = 0.3,
) -> Predictor:
    if not 0 < ridge < float("inf"):
        raise UserError(f"predictor.ridge: got {ridge}, takes a number above 0")
    return _written(
        dim,
        lambda memory: optimal(memory["correlation"], memory["cross"], ridge),
        {"cross": (dim, dim)},
        every=every,
        phase=phase,
        init=init,
        rho=rho,
    )


# Each function takes the dimension and, by keyword, options that all have a default. An option that
# is called like a field of `config.predictor` gets that field. `init`, `output_bias` and
# `axis_name` come from the run's other fields.
KINDS: dict[str, Callable[..., Predictor]] = {
    "mlp": _mlp,
    "linear": _linear,
    "direct_pred": _direct_pred,
    "direct_copy": _direct_copy,
    "direct_set": _direct_set,
    "optimal": _optimal,
}


def in_closed_form(
    dim: int,
    write: Write,
    *,
    centre: bool = False,
    every: int = 1,
    phase: int = 0,
    init: str = "pytorch",
    rho: float = 0.3,
) -> Predictor:
    """Build a predictor of one layer that is written down from the projections' correlation.

    Args:
        dim: D, the length of a projection.
        write: write(F (D, D)) -> W_p (D, D).
        centre: whether `write` gets F - m mᵀ, with m the running average of the projections' mean
            by the same rho. It has no negative eigenvalue: m mᵀ of an average is at most the
            average of all m mᵀ. The memory keeps F itself. Tian et al. 2021, whose code has it as
            `dyn_zero_mean`, found that it does harm.
        every: steps from one writing to the next. In between the optimizer's steps stand (the
            hybrid).
        phase: W_p is written at the end of the steps phase, phase + every, ..., counted from 0. The
            original code's is 0, the replication's every - 1.
        init: name of the initialisation, which holds until the first step is over.
        rho: how much of the old correlation is kept each step, in [0, 1).

    Returns:
        The predictor (B, D) -> (B, D). Its parameters are {"linear": {"kernel": W_pᵀ}}.

    Raises:
        UserError: `every`, `phase` or `rho` is out of its range.
    """

    def centred(memory: Memory) -> jax.Array:
        return write(memory["correlation"] - jnp.outer(memory["mean"], memory["mean"]))

    return _written(
        dim,
        centred if centre else lambda memory: write(memory["correlation"]),
        {"mean": (dim,)} if centre else {},
        every=every,
        phase=phase,
        init=init,
        rho=rho,
    )


def _written(
    dim: int,
    write: Callable[[Memory], jax.Array],
    kept: Mapping[str, tuple[int, ...]],
    *,
    every: int,
    phase: int,
    init: str,
    rho: float,
) -> Predictor:
    """Return the predictor of one layer that `write` writes down from the whole memory.

    `kept` has the shape of each of `AVERAGED` that the memory holds.
    """
    if every < 1:
        raise UserError(f"predictor.every: got {every}, takes a whole number of steps, at least 1")
    if not 0 <= phase < every:
        raise UserError(
            f"predictor.phase: got {phase}, takes 0 to {every - 1}, one less than predictor.every"
        )
    predictor = _one_layer(dim, rho, init, _set_every(every, phase, write), closed_form=True)
    return _observing(predictor, kept, rho) if kept else predictor


def _observing(predictor: Predictor, kept: Mapping[str, tuple[int, ...]], rho: float) -> Predictor:
    """Return the predictor with a memory of the averages `kept` beside F."""

    def init(key: jax.Array) -> tuple[Params, Memory]:
        params, memory = predictor.init(key)
        return params, memory | {name: jnp.zeros(shape) for name, shape in kept.items()}

    def observe(memory: Memory, z: Pair, t: Pair, step: Step, mean: Mean) -> Memory:
        batch = mean({name: AVERAGED[name](z, t) for name in kept})
        return memory | {name: _averaged(memory[name], batch[name], rho, step) for name in kept}

    return predictor._replace(init=init, observe=observe)


def _averaged(old: jax.Array, new: jax.Array, rho: float, step: Step) -> jax.Array:
    """Return rho old + (1 - rho) new; the first batch is taken as it is."""
    return jnp.where(jnp.asarray(step) == 0, new, rho * old + (1 - rho) * new)


def _check_eps(eps: float) -> None:
    if not 0 <= eps <= 1:
        raise UserError(f"predictor.eps: got {eps}, takes a number in [0, 1]")


def _with_memory(
    dim: int, rho: float, init_params: Callable[[jax.Array], Params], regulate: Regulate
) -> tuple[Init, Update]:
    """Return (init, update) of a predictor that keeps F_k = rho F_{k-1} + (1 - rho) C_k.

    The first batch is stored as it is. "recent" is kept by the same rule with its own rho, where
    this one is long. `regulate(params, memory, step)` then has its way with the
    parameters.
    """
    if not 0 <= rho < 1:
        raise UserError(f"predictor.rho: got {rho}, takes a number in [0, 1)")
    averages = {"correlation": rho} | ({"recent": RECENT_RHO} if rho > LONG_RHO else {})

    def init(key: jax.Array) -> tuple[Params, Memory]:
        return init_params(key), {name: jnp.zeros((dim, dim)) for name in averages}

    def update(
        params: Params, memory: Memory, corr: jax.Array, step: Step
    ) -> tuple[Params, Memory]:
        memory = memory | {
            name: _averaged(memory[name], corr, kept, step) for name, kept in averages.items()
        }
        return regulate(params, memory, step), memory

    return init, update


def _one_layer(
    dim: int, rho: float, preset: str, regulate: Regulate, *, closed_form: bool
) -> Predictor:
    """Return p = W_p z, learned or written down by `regulate`.

    The parameters are {"linear": {"kernel": W_pᵀ}}.
    """

    def init_params(key: jax.Array) -> Params:
        return {"linear": {"kernel": linear_init(preset)(key, (dim, dim))}}

    def apply(params: Params, memory: Memory, z: jax.Array) -> jax.Array:
        return z @ params["linear"]["kernel"]

    def matrix(params: Params) -> jax.Array:
        return params["linear"]["kernel"].T

    init, update = _with_memory(dim, rho, init_params, regulate)
    return Predictor(init, apply, update, matrix, closed_form)


def _after_each_step(projection: Callable[[Params], Params] | None) -> Regulate:
    """Return the regulation that applies `projection`, or none, to the parameters."""
    return lambda params, memory, step: params if projection is None else projection(params)


def _set_every(every: int, phase: int, write: Callable[[Memory], jax.Array]) -> Regulate:
    """Return the regulation that overwrites W_p where step mod every == phase."""

    def set_kernel(params: Params, memory: Memory) -> Params:
        return {"linear": {"kernel": write(memory).T}}

    def regulate(params: Params, memory: Memory, step: Step) -> Params:
        if every == 1:
            return set_kernel(params, memory)
        # lax.cond, so that the eigendecomposition is paid for only where its result is used.
        return cast(
            Params,
            jax.lax.cond(
                jnp.asarray(step) % every == phase,
                set_kernel,
                lambda params, _: params,
                params,
                memory,
            ),
        )

    return regulate
