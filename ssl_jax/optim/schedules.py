"""Learning-rate and target-average schedules: step -> float, usable inside a compiled step."""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_jax.errors import UserError, nearest

# --- Shapes: fractions of the peak over `steps` steps ---------------------------------------------


def constant(steps: int) -> optax.Schedule:
    """Return 1 at every step."""
    return optax.constant_schedule(1.0)


def linear(steps: int, *, end: float = 0.0) -> optax.Schedule:
    """Return a line from 1 to `end`."""
    return optax.linear_schedule(1.0, end, steps)


def step(steps: int, *, factor: float = 0.1, every: int = 0) -> optax.Schedule:
    """Return factor^floor(t / every).

    Args:
        steps: length of the schedule.
        factor: what one drop multiplies the rate by, in (0, 1].
        every: number of steps between two drops. 0: a third of all steps.

    Returns:
        A function step -> fraction of the peak.
    """
    every = every or math.ceil(steps / 3)
    return optax.exponential_decay(1.0, every, factor, staircase=True)


def cosine(steps: int, *, end: float = 0.0) -> optax.Schedule:
    """Return end + (1 - end) (1 + cos(pi t / T)) / 2 at step t of T = `steps`."""
    return optax.cosine_decay_schedule(1.0, steps, alpha=end)


def polynomial(steps: int, *, power: float = 2.0, end: float = 0.0) -> optax.Schedule:
    """Return end + (1 - end) (1 - t / T)^power at step t of T = `steps`.

    Args:
        steps: length of the schedule, T.
        power: the exponent, above 0.
        end: last value, in [0, 1].

    Returns:
        A function step -> fraction of the peak.
    """
    return optax.polynomial_schedule(1.0, end, power, steps)


def triangular(steps: int, *, cycle: int = 0, low: float = 0.25) -> optax.Schedule:
    """Return a line from `low` up to 1 and back in every cycle.

    Smith 2017, arXiv 1506.01186, section 3.

    Args:
        steps: length of the schedule.
        cycle: length of a cycle in steps. 0: all steps.
        low: the value at the ends of a cycle, in [0, 1].

    Returns:
        A function step -> fraction of the peak.
    """
    return lambda t: low + (1 - low) * _wave(t, cycle or steps)


def triangular2(steps: int, *, cycle: int = 0, low: float = 0.25) -> optax.Schedule:
    """Return `triangular` with its height above `low` halved after every cycle.

    Args:
        steps: length of the schedule.
        cycle: length of a cycle in steps. 0: all steps.
        low: the value at the ends of a cycle, in [0, 1].

    Returns:
        A function step -> fraction of the peak.
    """
    length = cycle or steps
    return lambda t: (
        low + (1 - low) * _wave(t, length) * jnp.power(0.5, jnp.floor_divide(t, length))
    )


def exp_range(
    steps: int, *, cycle: int = 0, low: float = 0.25, gamma: float = 0.99994
) -> optax.Schedule:
    """Return `triangular` with its height above `low` multiplied by gamma every step.

    Smith's own code, Keras and PyTorch do so. The text of the paper lets both boundaries decline.

    Args:
        steps: length of the schedule.
        cycle: length of a cycle in steps. 0: all steps.
        low: the value at the ends of a cycle, in [0, 1].
        gamma: factor of the height, in (0, 1].

    Returns:
        A function step -> fraction of the peak.
    """
    return lambda t: low + (1 - low) * _wave(t, cycle or steps) * jnp.power(gamma, t)


def sgdr(steps: int, *, cycle: int = 0, growth: float = 1.0, end: float = 0.0) -> optax.Schedule:
    """Return cosines from 1 to `end`, one per cycle.

    Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5.

    Args:
        steps: length of the schedule.
        cycle: length of the first cycle in steps (T_0). 0: all steps.
        growth: the length of a cycle over that of the one before (T_mult), at least 1.
        end: the value at the end of a cycle, in [0, 1].

    Returns:
        A function step -> fraction of the peak.
    """
    lengths = cycle_lengths(steps, cycle or steps, growth)
    one: dict[str, Any] = {
        "init_value": 1.0,
        "peak_value": 1.0,
        "warmup_steps": 0,
        "end_value": end,
    }
    return optax.sgdr_schedule([one | {"decay_steps": length} for length in lengths])


def _wave(t: Any, cycle: int) -> jax.Array:
    """Return 0 at the ends of a cycle, 1 in its middle, and lines between them."""
    return 1 - jnp.abs(2 * (t % cycle) / cycle - 1)


def cycle_lengths(steps: int, cycle: int, growth: float = 1.0) -> list[int]:
    """Return the whole lengths of the cycles that it takes to cover `steps`.

    Args:
        steps: length of the schedule.
        cycle: length of the first cycle in steps.
        growth: the length of a cycle over that of the one before, at least 1.

    Returns:
        Lengths in steps. The last cycle has its whole length, though `steps` may end within it.
    """
    lengths: list[int] = []
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
# The allowed range of each option, in words and as a test.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "end": ("a fraction of the peak, in [0, 1]", lambda x: 0 <= x <= 1),
    "low": ("a fraction of the peak, in [0, 1]", lambda x: 0 <= x <= 1),
    "power": ("a number above 0", lambda x: 0 < x < math.inf),
    "factor": ("a number in (0, 1]", lambda x: 0 < x <= 1),
    "gamma": ("a number in (0, 1]", lambda x: 0 < x <= 1),
    "every": ("a whole number of steps, or 0 for a third of all", lambda x: x >= 0 and x == int(x)),
    "cycle": ("a whole number of steps, or 0 for all", lambda x: x >= 0 and x == int(x)),
    "growth": ("a number of at least 1", lambda x: 1 <= x < math.inf),
}

# --- Whole schedules ------------------------------------------------------------------------------


def make_schedule(
    name: str, peak: Any, total_steps: int, warmup_steps: int = 0, **options: Any
) -> optax.Schedule:
    """Return `peak` times a shape, after a linear warm-up from 0 to the shape's first value.

    Args:
        name: the shape, a key of `SCHEDULES`.
        peak: a number, possibly traced.
        total_steps: length of the schedule, warm-up included.
        warmup_steps: length of the warm-up.
        **options: keyword arguments of the shape's builder. Lengths count in steps.

    Returns:
        A function step -> number.

    Raises:
        UserError: no shape has this name, or an option is unknown or out of its range.
    """
    _check(name, total_steps, warmup_steps, options)
    shape = SCHEDULES[name](max(total_steps - warmup_steps, 1), **options)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, shape(0), warmup_steps)
        shape = optax.join_schedules([warmup, shape], [warmup_steps])
    return lambda count: peak * shape(count)


def cycle_ends(
    name: str, total_steps: int, warmup_steps: int = 0, **options: Any
) -> tuple[int, ...]:
    """Return the numbers of steps after which a cycle is complete.

    There a snapshot ensemble takes its members (Huang et al. 2017, arXiv 1704.00109).

    Args:
        name: the shape, a key of `SCHEDULES`.
        total_steps: length of the schedule, warm-up included.
        warmup_steps: length of the warm-up.
        **options: keyword arguments of the shape's builder. Lengths count in steps.

    Returns:
        Numbers of steps, ascending. The last is `total_steps`. A shape without cycles has no other.

    Raises:
        UserError: no shape has this name, or an option is unknown or out of its range.
    """
    _check(name, total_steps, warmup_steps, options)
    steps = total_steps - warmup_steps
    cycle = options.get("cycle") or max(steps, 1)
    lengths = cycle_lengths(steps, cycle, options.get("growth", 1.0))
    ends = [warmup_steps + sum(lengths[:i]) for i in range(1, len(lengths))]
    return (*ends, total_steps)


def target_rate(name: str, base: float, total_steps: int) -> optax.Schedule:
    """Return tau, the share of the old target in its average, at each step.

    "cosine" is 1 - (1 - base)(cos(pi k / K) + 1) / 2 at step k of K, which rises to 1 (Grill et al.
    2020, arXiv 2006.07733, section 3.2).

    Args:
        name: "constant" or "cosine".
        base: tau at the first step, in [0, 1].
        total_steps: K.

    Returns:
        A function step -> tau.

    Raises:
        UserError: no schedule has this name.
    """
    if name not in ("constant", "cosine"):
        raise UserError(f"target.schedule: got {name!r}, {nearest(name, ['constant', 'cosine'])}")
    if name == "constant":
        return lambda step: base
    return lambda step: 1 - (1 - base) * (jnp.cos(math.pi * step / total_steps) + 1) / 2


def options_of_schedule(name: str) -> dict[str, Any]:
    """Return the options of a schedule with their defaults."""
    if name not in SCHEDULES:
        raise UserError(f"schedule.name: got {name!r}, {nearest(name, SCHEDULES)}")
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _check(name: str, total_steps: int, warmup_steps: int, options: dict[str, Any]) -> None:
    """Raise UserError for the first argument that is wrong."""
    known = options_of_schedule(name)
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(
            f"schedule.warmup_epochs: {warmup_steps} steps of warm-up do not fit in "
            f"{total_steps} steps"
        )
    for option, value in options.items():
        if option not in known:
            takes = nearest(option, known) if known else "it takes none"
            raise UserError(
                f"schedule.{option}: got {value!r}, which is no option of {name}; {takes}"
            )
        words, fits = _RANGES[option]
        if not fits(value):
            raise UserError(f"schedule.{option}: got {value}, takes {words}")
