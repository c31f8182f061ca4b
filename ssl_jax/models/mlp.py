"""A multi-layer perceptron: the network on which initialisations, activations and depths are compared."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Style


class MLP(nn.Module):
    """The image flattened, then `depth` times linear -> norm -> activation -> dropout: (B, H, W, C) -> (B, width)."""

    depth: int = 2
    width: int = 256
    dropout: float = 0.0
    style: Style = Style(norm="none")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for i in range(1, self.depth + 1):
            x = self.style.linear(self.width, x.shape[-1], name=f"linear{i}")(x)
            x = self.style.activate(self.style.normalise(x, train, name=f"norm{i}"))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x.astype(jnp.float32)
