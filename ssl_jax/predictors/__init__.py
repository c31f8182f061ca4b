"""Predictors, learned or written down in closed form."""

from ssl_jax.predictors.predictor import (
    KINDS,
    Memory,
    Predictor,
    in_closed_form,
    make_predictor,
    options_of,
    recent_correlation,
)

__all__ = [
    "KINDS",
    "Memory",
    "Predictor",
    "in_closed_form",
    "make_predictor",
    "options_of",
    "recent_correlation",
]
