"""Learning-rate and target-average schedules: step -> float, usable inside a compiled step."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax

from ssl_jax.errors import UserError, nearest

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
}


def make_schedule(name: str, peak: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """`peak` held or decayed to 0 over `total_steps`, after a linear warm-up from 0 over `warmup_steps`."""
    if name not in SCHEDULES:
        raise UserError(f"schedule.name: got {name!r}, {nearest(name, SCHEDULES)}")
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(f"schedule.warmup_epochs: {warmup_steps} steps of warm-up do not fit in {total_steps} steps")
    main = SCHEDULES[name](peak, total_steps - warmup_steps)
    if warmup_steps == 0:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), main], [warmup_steps])


def target_rate(name: str, base: float, total_steps: int) -> optax.Schedule:
    """tau per step: constant, or 1 - (1 - base)(cos(pi k / K) + 1) / 2, which rises to 1 (Grill et al. 2020,
    arXiv 2006.07733, section 3.2).
    """
    if name not in ("constant", "cosine"):
        raise UserError(f"target.schedule: got {name!r}, {nearest(name, ['constant', 'cosine'])}")
    if name == "constant":
        return lambda step: base
    return lambda step: 1 - (1 - base) * (jnp.cos(math.pi * step / total_steps) + 1) / 2
