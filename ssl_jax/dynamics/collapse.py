"""Signs of collapse; `diagnosis.state` reads them."""

import jax
import jax.numpy as jnp

from ssl_jax.linalg import asymmetry, effective_rank, symmetric_eigh
from ssl_jax.losses import unit


def relative_spread(z: jax.Array) -> jax.Array:
    """sqrt(D) times the mean standard deviation of the normalised projections z (B, D), about 1 when they fill
    the sphere evenly and 0 when all are equal (Chen & He 2021, arXiv 2011.10566, section 4.1). Of a batch over several
    devices the step takes the mean of each device's own, a little less than the spread of the whole.
    """
    return jnp.std(unit(z), axis=0).mean() * jnp.sqrt(z.shape[-1])


def collapse_signs(correlation: jax.Array, predictor: jax.Array) -> dict[str, jax.Array]:
    """Scalars from F and W_p, both (D, D): effective rank, largest eigenvalue, predictor norm and asymmetry."""
    eigenvalues, _ = symmetric_eigh(correlation)
    return {
        "effective_rank": effective_rank(eigenvalues),
        "top_eigenvalue": eigenvalues[-1],
        "predictor_norm": jnp.linalg.norm(predictor),
        "predictor_asymmetry": asymmetry(predictor),
    }
