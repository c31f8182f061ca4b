"""The sixteen optimizers, without their decay: transformations of a gradient into the step -eta U.

The learning rate is decided in one place, outside, and handed to `update` as Optax's extra argument `rate`:

    direction = DIRECTIONS["adam"](b1=0.9)
    updates, state = direction.update(grads, state, params, rate=eta)

A builder's signature is the list of its options. Each follows the optimizer's paper or, where the paper leaves it open,
PyTorch; where Optax has another convention, a comment says so.
"""

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
    """u -> -eta u, with eta the `rate` that `update` is given."""

    def update(updates, state, params=None, *, rate, **_):
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    return Direction(lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


def sgd() -> Direction:
    """U = g."""
    return descend()


def momentum(*, momentum: float = 0.9, inside: bool = False, dampening: float = 0.0) -> Direction:
    """Heavy ball: m <- mu m + (1 - dampening) g, U = m; or with eta inside the buffer, m <- mu m + eta g, step -m.

    The two are one under a constant rate. As in PyTorch eta stands outside by default; unlike there, the first
    gradient is dampened as all others are.
    """
    damp = optax.scale(1 - dampening) if dampening else optax.identity()
    ball = optax.trace(momentum)
    return optax.chain(damp, descend(), ball) if inside else optax.chain(damp, ball, descend())


def nesterov(*, momentum: float = 0.9) -> Direction:
    """m <- mu m + g, U = g + mu m: Nesterov's method in the variable theta - eta mu m, the look-ahead point, at which
    the gradient is taken (Sutskever et al. 2013; Bengio et al. 2013, arXiv 1212.0901, eq. 7).
    """
    return optax.chain(optax.trace(momentum, nesterov=True), descend())


def adagrad(*, eps: float = 1e-10, initial: float = 0.0) -> Direction:
    """s <- s + g², U = g / (sqrt(s) + eps) (Duchi et al. 2011)."""
    return optax.chain(scale_by_sum_of_squares(initial, eps), descend())


def adadelta(*, rho: float = 0.9, eps: float = 1e-6) -> Direction:
    """U = g RMS(previous U) / RMS(g), both moving averages, eps inside the roots (Zeiler 2012, arXiv 1212.5701)."""
    return optax.chain(optax.scale_by_adadelta(rho, eps), descend())


def rmsprop(*, rho: float = 0.9, eps: float = 1e-8) -> Direction:
    """v <- rho v + (1 - rho) g², U = g / (sqrt(v) + eps) (Hinton 2012, lecture 6e; PyTorch's rho is 0.99)."""
    # Optax puts eps inside the root unless told otherwise.
    return optax.chain(optax.scale_by_rms(rho, eps, eps_in_sqrt=False), descend())


def adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """U = m̂ / (sqrt(v̂) + eps) (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), descend())


def adamax(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """U = m̂ / u, u <- max(b2 u, |g| + eps) (the same, algorithm 2; eps as in PyTorch)."""
    return optax.chain(optax.scale_by_adamax(b1, b2, eps), descend())


def nadam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """U = (b1 m_t / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)) / (sqrt(v̂) + eps) (Dozat 2016, "Incorporating Nesterov
    momentum into Adam", algorithm 2 with constant mu).
    """
    # PyTorch warms b1 up from half its value, b1 (1 - 0.96^(t psi) / 2), psi = 0.004; with psi infinite it is this one.
    return optax.chain(optax.scale_by_adam(b1, b2, eps, nesterov=True), descend())


def amsgrad(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """U = m / (sqrt(v̂) + eps), v̂ <- max(v̂, v) (Reddi et al. 2018, arXiv 1904.09237, algorithm 2)."""
    # The paper corrects no bias. PyTorch corrects both after the maximum is taken, Optax by default before it.
    plain = optax.scale_by_amsgrad(b1, b2, eps, bias_correction_mu=False, bias_correction_nu=False)
    return optax.chain(plain, descend())


def radam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Direction:
    """U = r m̂ / (sqrt(v̂) + eps) where the variance is tractable (rho_t of at least 5, as in PyTorch and Optax; the
    paper: 4), else m̂ (Liu et al. 2020, arXiv 1908.03265, algorithm 2).
    """
    return optax.chain(optax.scale_by_radam(b1, b2, eps), descend())


def lookahead(*, inner: str = "adam", period: int = 6, slow: float = 0.5, **options: Any) -> Direction:
    """Every `period` steps of `inner`: slow weights s <- s + slow (theta - s), theta <- s (Zhang et al. 2019, arXiv
    1907.08610, algorithm 1). `options` are those of the inner optimizer.
    """
    known = [name for name in DIRECTIONS if name != "lookahead"]
    if inner not in known:
        raise UserError(f"optimizer.inner: got {inner!r}, {nearest(inner, known)}")
    return look_ahead(DIRECTIONS[inner](**options), period, slow)


def lion(*, b1: float = 0.9, b2: float = 0.99) -> Direction:
    """U = sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""
    return optax.chain(optax.scale_by_lion(b1, b2), descend())


def lars(*, momentum: float = 0.9, trust: float = 1e-3, eps: float = 0.0) -> Direction:
    """m <- mu m + trust ||theta|| / (||g|| + eps) g, U = m; biases and norms (fewer than two dimensions) without the
    ratio (You et al. 2017, arXiv 1708.03888, as BYOL has it: Grill et al. 2020, section 3.3).
    """
    # optax.lars, and the paper, multiply by the learning rate before the momentum; BYOL last.
    ratio = optax.scale_by_trust_ratio(trust_coefficient=trust, eps=eps)
    ratio = optax.masked(ratio, lambda tree: jax.tree.map(lambda leaf: leaf.ndim >= 2, tree))
    return optax.chain(ratio, optax.trace(momentum), descend())


def natural(*, rho: float = 0.95, damping: float = 1e-3, block: int = 64) -> Direction:
    """U = (F + damping I)⁻¹ g with the empirical Fisher of each array of at most `block` entries, or its diagonal."""
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
# The options that say how much of the past is kept.
_SHARES = ("momentum", "dampening", "b1", "b2", "rho")


def make_direction(name: str, options: dict[str, Any], momentum: float = 0.9) -> Direction:
    """The direction `name`; UserError for an option that it does not take or a value out of range.

    `momentum` goes to the optimizer if it has one, and to Lookahead's inner one.
    """
    if name not in DIRECTIONS:
        raise UserError(f"optimizer.name: got {name!r}, {nearest(name, DIRECTIONS)}")
    known = options_of(name, options.get("inner", "adam"))
    options = options | ({"momentum": momentum} if "momentum" in known else {})
    for option, value in options.items():
        if option not in known:
            takes = nearest(option, known) if known else "it takes none"
            raise UserError(f"optimizer.{option}: got {value!r}, which is no option of {name}; {takes}")
        _check(option, value)
    return DIRECTIONS[name](**options)


def options_of(name: str, inner: str = "adam") -> dict[str, Any]:
    """The options that an optimizer takes, with their defaults; Lookahead's are also those of its inner one."""
    parameters = inspect.signature(DIRECTIONS[name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return own | (options_of(inner) if name == "lookahead" and inner in DIRECTIONS and inner != name else {})


def _check(option: str, value: Any) -> None:
    """UserError where a plain number is out of range; traced values pass."""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return
    if option in _SHARES and not 0 <= value < 1:
        raise UserError(f"optimizer.{option}: got {value}, takes a number in [0, 1)")
    if option == "damping" and not value > 0:
        raise UserError(f"optimizer.damping: got {value}, takes a number above 0")
    if option == "slow" and not 0 < value <= 1:
        raise UserError(f"optimizer.slow: got {value}, takes a number in (0, 1]")
    if option == "period" and (value != int(value) or value < 1):
        raise UserError(f"optimizer.period: got {value}, takes a whole number of at least 1")
    if not value >= 0:
        raise UserError(f"optimizer.{option}: got {value}, takes a number of at least 0")


# --- Parts that Optax lacks --------------------------------------------------------------------------------------


def scale_by_sum_of_squares(initial: float = 0.0, eps: float = 1e-10) -> optax.GradientTransformation:
    """g -> g / (sqrt(s) + eps), s <- s + g² from `initial`. optax.scale_by_rss has eps inside the root."""

    def update(updates, state, params=None):
        del params
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        scaled = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, total)
        return scaled, optax.ScaleByRssState(total)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByRssState(optax.tree.full_like(params, initial)), update
    )


class LookaheadState(NamedTuple):
    """count () int32, steps since the slow weights were last set; slow weights; the inner optimizer's state."""

    count: jax.Array
    slow: Params
    inner: PyTree


def look_ahead(inner: Direction, period: int, slow: float) -> Direction:
    """Lookahead on plain parameters. optax.lookahead wants pairs of fast and slow ones instead.

    The slow weights are read off the parameters at the first step of every period. They are then the point where the
    last period ended, whatever happened to it since: decay before or after the step, or a projection.
    """

    def init(params):
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(updates, state, params, **extra):
        start = jax.tree.map(functools.partial(jnp.where, state.count == 0), params, state.slow)
        updates, memory = inner.update(updates, state.inner, params, **extra)
        at_end = state.count == period - 1

        def back(u, theta, s):
            return jnp.where(at_end, s + slow * (theta + u - s) - theta, u)

        updates = jax.tree.map(back, updates, params, start)
        return updates, LookaheadState((state.count + 1) % period, start, memory)

    return Direction(init, update)  # pyright: ignore[reportArgumentType]
