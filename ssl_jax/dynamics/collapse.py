"""Scalars that show collapse; `diagnosis.state` reads them."""

import jax
import jax.numpy as jnp

from ssl_jax.linalg import asymmetry, effective_rank, symmetric_eigh
from ssl_jax.losses import unit


def relative_spread(z: jax.Array) -> jax.Array:
    """Return sqrt(D) times the mean standard deviation of the normalised projections z (B, D), ().

    It is about 1 where they fill the sphere evenly and 0 where all are equal (Chen & He 2021, arXiv
    2011.10566, section 4.1). On several devices the step averages the values of the devices, which
    is a little less than the spread of the whole batch.
    """
    return jnp.std(unit(z), axis=0).mean() * jnp.sqrt(z.shape[-1])


def collapse_signs(correlation: jax.Array, predictor: jax.Array) -> dict[str, jax.Array]:
    """Return scalars of the correlation F and the predictor W_p, both (D, D).

    effective_rank and top_eigenvalue are those of F. predictor_norm is the Frobenius norm of W_p,
    and predictor_asymmetry its asymmetry in that norm.
    """
    eigenvalues, _ = symmetric_eigh(correlation)
    return {
        "effective_rank": effective_rank(eigenvalues),
        "top_eigenvalue": eigenvalues[-1],
        "predictor_norm": jnp.linalg.norm(predictor),
        "predictor_asymmetry": asymmetry(predictor),
    }
