"""Predictors written down in closed form from the correlation F of the projections: DirectPred,
DirectCopy.
"""

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.linalg import from_spectrum, symmetric_eigh

EPS_MODES = ("relative", "literal")


def direct_pred(
    corr: jax.Array, eps: float = 0.1, eps_mode: str = "relative", floor: float = 1e-4
) -> jax.Array:
    """W_p = U diag(p) Uᵀ from F = U diag(s) Uᵀ, both (D, D) float32.

    With m = max_j s_j and negative s_j (rounding) taken as 0:
      "relative": p_j = max(sqrt(s_j / m) + eps, floor), what both published codes compute; F's
          scale cancels.
      "literal":  p_j = max(sqrt(s_j) + eps * m, floor), as printed in Tian et al. 2021 eq. 18
          (arXiv 2102.06810)
                  and Höppe et al. 2022 eq. 5; there eps acts as eps * sqrt(m) of the relative form.
    F = 0 gives eps * I (relative), so that a dead network still yields a finite predictor.
    """
    if eps_mode not in EPS_MODES:
        raise UserError(
            f"predictor.eps_mode: got {eps_mode!r}, takes one of {', '.join(EPS_MODES)}"
        )
    s, vectors = symmetric_eigh(corr)
    s = jnp.maximum(s, 0)
    top = s[-1]
    if eps_mode == "relative":
        p = jnp.sqrt(s / jnp.where(top > 0, top, 1)) + eps
    else:
        p = jnp.sqrt(s) + eps * top
    return from_spectrum(vectors, jnp.maximum(p, floor))


def direct_copy(corr: jax.Array, eps: float = 0.3) -> jax.Array:
    """W_p = F / ||F||_F + eps I, (D, D): DirectCopy (Wang et al. 2021, arXiv 2110.04947), no
    eigenvectors needed.
    """
    norm = jnp.linalg.norm(corr)
    return corr / jnp.where(norm > 0, norm, 1) + eps * jnp.eye(corr.shape[0], dtype=corr.dtype)
