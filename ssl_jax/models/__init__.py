"""Encoders, heads, classifiers and networks as pure functions."""

from ssl_jax.models.classifier import Classifier, make_classifier
from ssl_jax.models.encoders import ENCODERS, make_encoder
from ssl_jax.models.heads import MLPHead
from ssl_jax.models.layer_order import call_order, parameter_paths
from ssl_jax.models.network import Network, make_network
from ssl_jax.models.timm_weights import fit_file, load_weights, to_arrays

__all__ = [
    "Classifier",
    "ENCODERS",
    "MLPHead",
    "Network",
    "call_order",
    "fit_file",
    "load_weights",
    "make_classifier",
    "make_encoder",
    "make_network",
    "parameter_paths",
    "to_arrays",
]
