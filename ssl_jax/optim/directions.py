"""The sixteen optimizers without their decay: transformations of a gradient into the step -eta U.

The learning rate eta is computed outside and handed to `update` as Optax's extra argument `rate`:

    direction = DIRECTIONS["adam"](b1=0.9)
    updates, state = direction.update(grads, state, params, rate=eta)

A builder's signature is the list of its options. Each follows the optimizer's paper. Where the
paper leaves a choice, it follows PyTorch. Where Optax has another convention, a comment says so.
g is the gradient, theta the parameters; m and v are first and second moments, and a hat marks those
with the bias corrected.
"""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.optim.fisher import scale_by_fisher
from ssl_jax.types import Params, PyTree

Direction = optax.GradientTransformationExtraArgs


def descend() -> Direction:
    """Return u -> -eta u, with eta the `rate` that `update` is given."""

    def init(params: Params) -> optax.EmptyState:
        return optax.EmptyState()

    def update(
        updates: Params,
        state: optax.OptState,
        params: Params | None = None,
        *,
        rate: jax.Array,
        **_: Any,
    ) -> tuple[Params, optax.OptState]:
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    # The protocol of Optax has no `rate`, which is required here.
    return Direction(init, update)  # pyright: ignore[reportArgumentType]


def sgd() -> Direction:
    """Return gradient descent, U = g."""
    return descend()


def momentum(*, momentum: float = 0.9, inside: bool = False, dampening: float = 0.0) -> Direction:
    """Return heavy ball: m <- mu m + (1 - dampening) g, U = m.

    With eta inside the buffer m <- mu m + (1 - dampening) eta g, and the step is -m. Under a
    constant rate the two are one. As in PyTorch, eta stands outside by default. Unlike there, the
    first gradient is dampened as all others are.

    Args:
        momentum: mu, in [0, 1).
        inside: whether eta stands inside the buffer.
        dampening: in [0, 1).

    Returns:
        The transformation g -> -eta U.
    """
    damp = optax.scale(1 - dampening) if dampening else optax.identity()
    ball = optax.trace(momentum)
    return optax.chain(damp, descend(), ball) if inside else optax.chain(damp, ball, descend())


def nesterov(*, momentum: float = 0.9) -> Direction:
    """Return Nesterov's method: m <- mu m + g, U = g + mu m.

    Its variable is theta - eta mu m, the look-ahead point, at which the gradient is taken
    (Sutskever et al. 2013; Bengio et al. 2013, arXiv 1212.0901, eq. 7).
    """
    return optax.chain(optax.trace(momentum, nesterov=True), descend())


def adagrad(*, eps: float = 1e-10, initial: float = 0.0) -> Direction:
    """Return Adagrad: s <- s + g², U = g / (sqrt(s) + eps) (Duchi et al. 2011)."""
    return optax.chain(scale_by_sum_of_squares(initial, eps), descend())


def adadelta(*, rho: float = 0.9, eps: float = 1e-6) -> Direction:
    """Return Adadelta: U = g RMS(previous U) / RMS(g).

    Both RMS are moving averages, with eps inside the roots (Zeiler 2012, arXiv 1212.5701).
    """
    return optax.chain(optax.scale_by_adadelta(rho, eps), descend())


def rmsprop(*, rho: float = 0.9, eps: float = 1e-8, heavy_ball: float = 0.0) -> Direction:
    """Return RMSProp: v <- rho v + (1 - rho) g², m <- mu m + g / (sqrt(v) + eps), U = m.

    Hinton 2012, lecture 6e, which has no buffer m. PyTorch's rho is 0.99.

    Args:
        rho: share of the old average of g², in [0, 1).
        eps: what is added to the root.
        heavy_ball: mu, in [0, 1). 0: no buffer. PyTorch calls it momentum, with the same 0. Here it
            is apart from `momentum`, which is 0.9 for the optimizers that have one.

    Returns:
        The transformation g -> -eta U.
    """
    # Optax puts eps inside the root by default.
    scaled = optax.scale_by_rms(rho, eps, eps_in_sqrt=False)
    ball = [optax.trace(heavy_ball)] if heavy_ball else []
    return optax.chain(scaled, *ball, descend())


def adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """Return Adam: U = m̂ / (sqrt(v̂) + eps).

    Kingma & Ba 2015, arXiv 1412.6980, algorithm 1.

    Args:
        b1: share of the old first moment, in [0, 1).
        b2: share of the old second moment, in [0, 1).
        eps: what is added to the root.

    Returns:
        The transformation g -> -eta U.
    """
    return optax.chain(optax.scale_by_adam(b1, b2, eps), descend())


def adamax(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """Return AdaMax: u <- max(b2 u, |g| + eps), U = m̂ / u.

    Kingma & Ba 2015, arXiv 1412.6980, algorithm 2. eps stands as in PyTorch.

    Args:
        b1: share of the old first moment, in [0, 1).
        b2: share of the old maximum, in [0, 1).
        eps: what is added to |g|.

    Returns:
        The transformation g -> -eta U.
    """
    return optax.chain(optax.scale_by_adamax(b1, b2, eps), descend())


def nadam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """Return Nadam: U = (b1 m_t / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)) / (sqrt(v̂) + eps).

    Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2 with constant mu.

    Args:
        b1: share of the old first moment, in [0, 1).
        b2: share of the old second moment, in [0, 1).
        eps: what is added to the root.

    Returns:
        The transformation g -> -eta U.
    """
    # PyTorch warms b1 up from half its value, b1 (1 - 0.96^(t psi) / 2), psi = 0.004. With psi
    # infinite it is this one.
    return optax.chain(optax.scale_by_adam(b1, b2, eps, nesterov=True), descend())


def amsgrad(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """Return AMSGrad: v̂ <- max(v̂, v), U = m / (sqrt(v̂) + eps).

    Reddi et al. 2018, arXiv 1904.09237, algorithm 2. v̂ is the maximum. No bias is corrected.

    Args:
        b1: share of the old first moment, in [0, 1).
        b2: share of the old second moment, in [0, 1).
        eps: what is added to the root.

    Returns:
        The transformation g -> -eta U.
    """
    # PyTorch corrects both biases after the maximum is taken, Optax by default before it.
    plain = optax.scale_by_amsgrad(b1, b2, eps, bias_correction_mu=False, bias_correction_nu=False)
    return optax.chain(plain, descend())


def radam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """Return RAdam: U = r m̂ / (sqrt(v̂) + eps) where the variance is tractable, else m̂.

    Liu et al. 2020, arXiv 1908.03265, algorithm 2. The variance is tractable from rho_t = 5, as in
    PyTorch and Optax. The paper has 4.

    Args:
        b1: share of the old first moment, in [0, 1).
        b2: share of the old second moment, in [0, 1).
        eps: what is added to the root.

    Returns:
        The transformation g -> -eta U.
    """
    return optax.chain(optax.scale_by_radam(b1, b2, eps), descend())


def lookahead(
    *, inner: str = "adam", period: int = 6, slow: float = 0.5, **options: Any
) -> Direction:
    """Return Lookahead: every `period` steps s <- s + slow (theta - s), theta <- s.

    s are the slow weights (Zhang et al. 2019, arXiv 1907.08610, algorithm 1).

    Args:
        inner: the optimizer that takes the steps, a key of `DIRECTIONS`.
        period: number of steps between two updates of s.
        slow: step size of the slow weights, in (0, 1].
        **options: those of the inner optimizer.

    Returns:
        The transformation g -> -eta U.

    Raises:
        UserError: no optimizer is called `inner`.
    """
    known = [name for name in DIRECTIONS if name != "lookahead"]
    if inner not in known:
        raise UserError(f"optimizer.inner: got {inner!r}, {nearest(inner, known)}")
    return look_ahead(DIRECTIONS[inner](**options), period, slow)


def lion(*, b1: float = 0.9, b2: float = 0.99) -> Direction:
    """Return Lion: U = sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g.

    Chen et al. 2023, arXiv 2302.06675, algorithm 2.
    """
    return optax.chain(optax.scale_by_lion(b1, b2), descend())


def lars(*, momentum: float = 0.9, trust: float = 1e-3, eps: float = 0.0) -> Direction:
    """Return LARS: m <- mu m + trust ||theta|| / (||g|| + eps) g, U = m.

    Biases and norms (fewer than two dimensions) go without the ratio. You et al. 2017, arXiv
    1708.03888, as BYOL has it: Grill et al. 2020, section 3.3.

    Args:
        momentum: mu, in [0, 1).
        trust: factor of the ratio of norms.
        eps: what is added to the gradient's norm.

    Returns:
        The transformation g -> -eta U.
    """

    def is_weight(leaf: jax.Array) -> bool:
        return leaf.ndim >= 2

    # optax.lars, and the paper, multiply by the learning rate before the momentum; BYOL last.
    ratio = optax.scale_by_trust_ratio(trust_coefficient=trust, eps=eps)
    ratio = optax.masked(ratio, functools.partial(jax.tree.map, is_weight))
    return optax.chain(ratio, optax.trace(momentum), descend())


def natural(*, rho: float = 0.95, damping: float = 1e-3, block: int = 64) -> Direction:
    """Return natural gradient: U = (F + damping I)⁻¹ g with the empirical Fisher matrix F.

    Args:
        rho: share of the old average of F, in [0, 1).
        damping: what is added to the diagonal of F, above 0.
        block: an array of at most this many entries has its whole block of F, a larger one the
            diagonal.

    Returns:
        The transformation g -> -eta U.
    """
    return optax.chain(scale_by_fisher(rho, damping, block), descend())


DIRECTIONS: dict[str, Callable[..., Direction]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamax": adamax,
    "nadam": nadam,
    "amsgrad": amsgrad,
    "radam": radam,
    "adamw": adam,  # with decoupled decay by default
    "lookahead": lookahead,
    "lion": lion,
    "lars": lars,
    "natural": natural,
}
# The options that are the weight of the past in a moving average or a buffer.
_SHARES = ("momentum", "heavy_ball", "dampening", "b1", "b2", "rho")


def make_direction(name: str, options: dict[str, Any], momentum: float = 0.9) -> Direction:
    """Build a direction by name.

    Args:
        name: a key of `DIRECTIONS`.
        options: keyword arguments of its builder.
        momentum: goes to the optimizer if it has one, and to Lookahead's inner one.

    Returns:
        The transformation g -> -eta U.

    Raises:
        UserError: no optimizer has this name, or an option is unknown or out of its range.
    """
    if name not in DIRECTIONS:
        raise UserError(f"optimizer.name: got {name!r}, {nearest(name, DIRECTIONS)}")
    known = options_of(name, options.get("inner", "adam"))
    options = options | ({"momentum": momentum} if "momentum" in known else {})
    for option, value in options.items():
        if option not in known:
            takes = nearest(option, known) if known else "it takes none"
            raise UserError(
                f"optimizer.{option}: got {value!r}, which is no option of {name}; {takes}"
            )
        _check(option, value)
    return DIRECTIONS[name](**options)


def options_of(name: str, inner: str = "adam") -> dict[str, Any]:
    """Return the options of an optimizer with their defaults.

    Lookahead also has those of its inner one.
    """
    parameters = inspect.signature(DIRECTIONS[name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if name == "lookahead" and inner in DIRECTIONS and inner != name:
        return own | options_of(inner)
    return own


def _check(option: str, value: Any) -> None:
    """Raise UserError where a plain number is out of range. Traced values pass."""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return
    if option in _SHARES and not 0 <= value < 1:
        raise UserError(f"optimizer.{option}: got {value}, takes a number in [0, 1)")
    if option == "damping" and not value > 0:
        raise UserError(f"optimizer.damping: got {value}, takes a number above 0")
    if option == "slow" and not 0 < value <= 1:
        raise UserError(f"optimizer.slow: got {value}, takes a number in (0, 1]")
    if option in ("period", "block") and not (value >= 1 and value % 1 == 0):
        raise UserError(f"optimizer.{option}: got {value}, takes a whole number of at least 1")
    if not value >= 0:
        raise UserError(f"optimizer.{option}: got {value}, takes a number of at least 0")


# --- Parts that Optax lacks -----------------------------------------------------------------------


def scale_by_sum_of_squares(
    initial: float = 0.0, eps: float = 1e-10
) -> optax.GradientTransformation:
    """Return g -> g / (sqrt(s) + eps), s <- s + g² from `initial`.

    optax.scale_by_rss has eps inside the root.
    """

    def init(params: Params) -> optax.ScaleByRssState:
        return optax.ScaleByRssState(optax.tree.full_like(params, initial))

    def update(
        updates: Params, state: optax.ScaleByRssState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByRssState]:
        del params
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        scaled = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total)
        return scaled, optax.ScaleByRssState(total)

    # Optax lets a state be any pytree; this one is given its own back.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


class LookaheadState(NamedTuple):
    """The state of `look_ahead`."""

    # () int32, steps since the slow weights were last set. (A tuple has a method of this name,
    # which nothing here calls.)
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    slow: Params  # the slow weights
    inner: PyTree  # the state of the inner optimizer


def look_ahead(inner: Direction, period: int, slow: float) -> Direction:
    """Return Lookahead on plain parameters. optax.lookahead needs pairs of fast and slow ones.

    The slow weights are read off the parameters at the first step of every period. They are then
    the point where the last period ended, whatever has changed it since: decay before or after the
    step, or a projection.

    Args:
        inner: the optimizer that takes the steps.
        period: number of steps between two updates of the slow weights.
        slow: step size of the slow weights, in (0, 1].

    Returns:
        The transformation g -> -eta U, with a `LookaheadState`.
    """

    def init(params: Params) -> LookaheadState:
        slow_weights = jax.tree.map(jnp.zeros_like, params)
        return LookaheadState(jnp.zeros((), jnp.int32), slow_weights, inner.init(params))

    def update(
        updates: Params, state: LookaheadState, params: Params, **extra: Any
    ) -> tuple[Params, LookaheadState]:
        start = jax.tree.map(functools.partial(jnp.where, state.count == 0), params, state.slow)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        at_end = state.count == period - 1

        def step_back(u: jax.Array, theta: jax.Array, s: jax.Array) -> jax.Array:
            return jnp.where(at_end, s + slow * (theta + u - s) - theta, u)

        updates = jax.tree.map(step_back, updates, params, start)
        return updates, LookaheadState((state.count + 1) % period, start, inner_state)

    # Optax lets a state be any pytree; this one is given its own back.
    return Direction(init, update)  # pyright: ignore[reportArgumentType]
