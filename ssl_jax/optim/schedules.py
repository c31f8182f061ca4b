"""Learning-rate and target-average schedules: step -> float, usable inside a compiled step."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from ssl_jax.errors import UserError, nearest

# --- Shapes: fractions of the peak over `steps` steps ------------------------------------------------------------


def constant(steps: int) -> optax.Schedule:
    """1."""
    return optax.constant_schedule(1.0)


def linear(steps: int, *, end: float = 0.0) -> optax.Schedule:
    """From 1 to `end`."""
    return optax.linear_schedule(1.0, end, steps)


def step(steps: int, *, factor: float = 0.1, every: int = 0) -> optax.Schedule:
    """factor^floor(t / every); every 0: a third of the steps."""
    return optax.exponential_decay(1.0, every or math.ceil(steps / 3), factor, staircase=True)


def cosine(steps: int, *, end: float = 0.0) -> optax.Schedule:
    """end + (1 - end) (1 + cos(pi t / T)) / 2."""
    return optax.cosine_decay_schedule(1.0, steps, alpha=end)


def polynomial(steps: int, *, power: float = 2.0, end: float = 0.0) -> optax.Schedule:
    """end + (1 - end) (1 - t / T)^power."""
    return optax.polynomial_schedule(1.0, end, power, steps)


def triangular(steps: int, *, cycle: int = 0, low: float = 0.25) -> optax.Schedule:
    """Up from `low` to 1 and back in every `cycle` steps (Smith 2017, arXiv 1506.01186, section 3); 0: all steps."""
    return lambda t: low + (1 - low) * _wave(t, cycle or steps)


def triangular2(steps: int, *, cycle: int = 0, low: float = 0.25) -> optax.Schedule:
    """The same, its height above `low` halved after every cycle."""
    length = cycle or steps
    return lambda t: low + (1 - low) * _wave(t, length) * jnp.power(0.5, jnp.floor_divide(t, length))


def exp_range(steps: int, *, cycle: int = 0, low: float = 0.25, gamma: float = 0.99994) -> optax.Schedule:
    """The same, its height above `low` multiplied by gamma every step.

    So in Smith's own code, in Keras and in PyTorch; in the words of the paper both boundaries decline.
    """
    return lambda t: low + (1 - low) * _wave(t, cycle or steps) * jnp.power(gamma, t)


def sgdr(steps: int, *, cycle: int = 0, growth: float = 1.0, end: float = 0.0) -> optax.Schedule:
    """Cosines from 1 to `end`, each `growth` times as long as the one before (T_mult), the first of `cycle` steps
    (T_0; 0: all). Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5.
    """
    lengths = cycle_lengths(steps, cycle or steps, growth)
    one = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "end_value": end}
    return optax.sgdr_schedule([one | {"decay_steps": length} for length in lengths])


def _wave(t, cycle: int):
    """0 at the ends of a cycle, 1 in its middle, straight in between."""
    return 1 - jnp.abs(2 * (t % cycle) / cycle - 1)


def cycle_lengths(steps: int, cycle: int, growth: float = 1.0) -> list[int]:
    """Whole lengths of the cycles that it takes to cover `steps`, the last one included though it may be cut short."""
    lengths = []
    while sum(lengths) < steps:
        lengths.append(round(cycle * growth ** len(lengths)))
    return lengths


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "linear": linear,
    "step": step,
    "cosine": cosine,
    "polynomial": polynomial,
    "triangular": triangular,
    "triangular2": triangular2,
    "exp_range": exp_range,
    "sgdr": sgdr,
}
# What an option takes, and the test of it.
_TAKES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "end": ("a fraction of the peak, in [0, 1]", lambda x: 0 <= x <= 1),
    "low": ("a fraction of the peak, in [0, 1]", lambda x: 0 <= x <= 1),
    "power": ("a number above 0", lambda x: 0 < x < math.inf),
    "factor": ("a number in (0, 1]", lambda x: 0 < x <= 1),
    "gamma": ("a number in (0, 1]", lambda x: 0 < x <= 1),
    "every": ("a whole number of steps, or 0 for a third of all", lambda x: x >= 0 and x == int(x)),
    "cycle": ("a whole number of steps, or 0 for all", lambda x: x >= 0 and x == int(x)),
    "growth": ("a number of at least 1", lambda x: 1 <= x < math.inf),
}

# --- What a run asks for -----------------------------------------------------------------------------------------


def make_schedule(name: str, peak: Any, total_steps: int, warmup_steps: int = 0, **options: Any) -> optax.Schedule:
    """`peak` times the shape `name`, after a linear warm-up from 0 to its first value over `warmup_steps`.

    `peak` may be traced. `options` are the keyword arguments of the shape's builder; lengths count in steps.
    """
    _check(name, total_steps, warmup_steps, options)
    shape = SCHEDULES[name](max(total_steps - warmup_steps, 1), **options)
    if warmup_steps:
        shape = optax.join_schedules([optax.linear_schedule(0.0, shape(0), warmup_steps), shape], [warmup_steps])
    return lambda count: peak * shape(count)


def cycle_ends(name: str, total_steps: int, warmup_steps: int = 0, **options: Any) -> tuple[int, ...]:
    """The numbers of steps after which a cycle is complete, where a snapshot ensemble takes its members; the last is
    `total_steps`, the only one where the schedule has no cycles (Huang et al. 2017, arXiv 1704.00109).
    """
    _check(name, total_steps, warmup_steps, options)
    steps = total_steps - warmup_steps
    lengths = cycle_lengths(steps, options.get("cycle") or max(steps, 1), options.get("growth", 1.0))
    ends = [warmup_steps + sum(lengths[:i]) for i in range(1, len(lengths))]
    return (*ends, total_steps)


def target_rate(name: str, base: float, total_steps: int) -> optax.Schedule:
    """tau per step: constant, or 1 - (1 - base)(cos(pi k / K) + 1) / 2, which rises to 1 (Grill et al. 2020,
    arXiv 2006.07733, section 3.2).
    """
    if name not in ("constant", "cosine"):
        raise UserError(f"target.schedule: got {name!r}, {nearest(name, ['constant', 'cosine'])}")
    if name == "constant":
        return lambda step: base
    return lambda step: 1 - (1 - base) * (jnp.cos(math.pi * step / total_steps) + 1) / 2


def options_of_schedule(name: str) -> dict[str, Any]:
    """The options that a schedule takes, with their defaults."""
    if name not in SCHEDULES:
        raise UserError(f"schedule.name: got {name!r}, {nearest(name, SCHEDULES)}")
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _check(name: str, total_steps: int, warmup_steps: int, options: dict[str, Any]) -> None:
    """UserError for the first thing that is wrong."""
    known = options_of_schedule(name)
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(f"schedule.warmup_epochs: {warmup_steps} steps of warm-up do not fit in {total_steps} steps")
    for option, value in options.items():
        if option not in known:
            takes = nearest(option, known) if known else "it takes none"
            raise UserError(f"schedule.{option}: got {value!r}, which is no option of {name}; {takes}")
        words, fits = _TAKES[option]
        if not fits(value):
            raise UserError(f"schedule.{option}: got {value}, takes {words}")
