"""Optimizers, their schedules, and weight decay of every kind."""

from ssl_jax.optim.decay import decayed, path_of
from ssl_jax.optim.optimizer import (
    DECAYS,
    Optimizer,
    OptimizerState,
    Schedule,
    assign_groups,
    by_group,
    clipped,
    kind_of_decay,
    make_optimizer,
    rescale,
)

__all__ = [
    "DECAYS",
    "Optimizer",
    "OptimizerState",
    "Schedule",
    "assign_groups",
    "by_group",
    "clipped",
    "decayed",
    "kind_of_decay",
    "make_optimizer",
    "path_of",
    "rescale",
]
