"""A multi-layer perceptron, for comparing initialisations, activations and depths."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Style


class MLP(nn.Module):
    """The flattened image, then `depth` times linear -> norm -> activation -> dropout.

    Input (B, H, W, C) float, output (B, width) float32.
    """

    depth: int = 2  # number of layers
    width: int = 256  # of each layer
    dropout: float = 0.0  # probability of setting an activation to zero
    style: Style = Style(norm="none")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i in range(1, self.depth + 1):
            x = self.style.linear(self.width, x.shape[-1], name=f"linear{i}")(x)
            x = self.style.activate(self.style.normalise(x, train, name=f"norm{i}"))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x.astype(jnp.float32)
