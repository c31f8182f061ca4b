"""Build the network from a configuration: encoder, projector, and the order of their layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models import MLPHead, Network, call_order, make_encoder, make_network, parameter_paths
from ssl_jax.optim.decay import natural
from ssl_jax.predictors import Predictor
from ssl_jax.types import Config

# Side of the image on which the order of a network's layers is traced. The order is the same for
# every side.
TRACED_SIDE = 32


def forward_order(network: Network, predictor: Predictor) -> tuple[str, ...]:
    """Return the modules of encoder, projector and predictor in the order of the forward pass."""
    trunk = call_order(network.init, jnp.zeros((2, TRACED_SIDE, TRACED_SIDE, 3)))
    params, _ = jax.eval_shape(predictor.init, jax.random.key(0))
    return trunk + tuple(sorted(parameter_paths({"predictor": params}), key=natural))


def build_encoder(config: Config, axis_name: str | None) -> nn.Module:
    """Return the encoder; BatchNorm averages over `axis_name`, or over the device where None."""
    return make_encoder(
        **config.encoder, init=config.init, precision=config.precision, axis_name=axis_name
    )


def build_network(config: Config, axis_name: str | None) -> Network:
    """Return encoder and projector; BatchNorm averages over `axis_name`, or over the device."""
    encoder = build_encoder(config, axis_name)
    projector = MLPHead(
        config.projector.hidden,
        config.projector.out,
        output_bias=config.projector.output_bias,
        preset=config.init,
        axis_name=axis_name,
        norm=config.projector.norm,
        standardise=config.projector.standardise,
    )
    return make_network(encoder, projector)
