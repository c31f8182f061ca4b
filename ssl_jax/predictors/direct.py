"""DirectPred and DirectCopy: predictors written down in closed form.

Both are functions of the correlation F of the projections.
"""

# JAX and its relatives leave the types of arrays' members, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.linalg import frobenius_norm, from_spectrum, symmetric_eigh

EPS_MODES = ("relative", "clipped", "literal")


def direct_pred(
    corr: jax.Array, eps: float = 0.1, eps_mode: str = "relative", floor: float = 1e-4
) -> jax.Array:
    """Compute DirectPred, W_p = U diag(p) Uᵀ, from F = U diag(s) Uᵀ.

    With m = max_j s_j and negative s_j (rounding) taken as 0:

        "relative"   p_j = max(sqrt(s_j / m) + eps, floor)
        "clipped"    p_j = max(sqrt(min(s_j / m, m)) + eps, floor)
        "literal"    p_j = max(sqrt(s_j) + eps * m, floor)

    The original code (Tian et al. 2021, arXiv 2102.06810) computes the relative form, in which F's
    scale cancels. The replication's (Höppe et al. 2022) computes the clipped one. It is the same
    while m >= 1. Below, all modes with s_j > m² share one eigenvalue, and the scale of F does not
    cancel. The literal form is printed in both papers, eq. 18 and eq. 5. There eps acts as eps *
    sqrt(m) of the relative form. F = 0 gives eps * I (relative, clipped), so that a dead network
    still yields a finite predictor.

    Args:
        corr: F (D, D) float32.
        eps: what is added to the eigenvalues, see above.
        eps_mode: "relative", "clipped" or "literal".
        floor: lower bound of the eigenvalues of W_p.

    Returns:
        W_p (D, D) float32, symmetric.

    Raises:
        UserError: `eps_mode` is unknown.
    """
    if eps_mode not in EPS_MODES:
        raise UserError(
            f"predictor.eps_mode: got {eps_mode!r}, takes one of {', '.join(EPS_MODES)}"
        )
    s, vectors = symmetric_eigh(corr)
    s = jnp.maximum(s, 0)
    top = s[-1]
    if eps_mode == "literal":
        p = jnp.sqrt(s) + eps * top
    else:
        share = s / jnp.where(top > 0, top, 1)
        p = jnp.sqrt(jnp.minimum(share, top) if eps_mode == "clipped" else share) + eps
    return from_spectrum(vectors, jnp.maximum(p, floor))


def direct_copy(corr: jax.Array, eps: float = 0.3) -> jax.Array:
    """Compute DirectCopy, W_p = F / ||F||_F + eps I, from F (D, D).

    Wang et al. 2021 (arXiv 2110.04947). It needs no eigenvectors.
    """
    norm = frobenius_norm(corr)
    return corr / jnp.where(norm > 0, norm, 1) + eps * jnp.eye(corr.shape[0], dtype=corr.dtype)
