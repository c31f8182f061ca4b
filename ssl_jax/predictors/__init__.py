"""Predictors, learned or written down in closed form."""

from ssl_jax.predictors.predictor import KINDS, Memory, Predictor, make_predictor, options_of

__all__ = ["KINDS", "Memory", "Predictor", "make_predictor", "options_of"]
