"""Predictors written down in closed form: DirectSet, of which DirectPred and DirectCopy are rows.

All are functions of the correlation F of the projections, `optimal` of that with the target's too.
"""

# JAX and its relatives leave the types of arrays' members, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.linalg import frobenius_norm, from_spectrum, matmul, symmetric_eigh

EPS_MODES = ("relative", "clipped", "literal")
NORMS = ("max", "frobenius", "trace", "none")  # what `direct_set` divides F by


def direct_set(
    corr: jax.Array, power: float = 0.5, eps: float = 0.1, norm: str = "max", floor: float = 0.0
) -> jax.Array:
    """Compute DirectSet, W_p = U diag(p) Uᵀ, from F = U diag(s) Uᵀ.

    With negative s_j (rounding) taken as 0,

        p_j = max((s_j / ||s||)^power + eps, floor)

    Wang et al. 2021 (arXiv 2110.04947) set W_p to a power of F. DirectPred is the power 1/2 over
    the largest s_j, DirectCopy the power 1 over the Frobenius norm, which needs no eigenvectors.
    F = 0 gives max(eps, floor) * I.

    Under the cosine loss eps is a threshold on how much of a mode the two views share, see
    `dynamics.cosine.direct_spectrum`; `dynamics.cosine.eps_of_modes` chooses it.

    Args:
        corr: F (D, D) float32.
        power: of the eigenvalues, above 0.
        eps: what is added to the eigenvalues of W_p.
        norm: of s, "max", "frobenius" (the root of the sum of squares) or "trace" (the sum); "none"
            leaves s as it is, for a loss that sees scale.
        floor: lower bound of the eigenvalues of W_p.

    Returns:
        W_p (D, D) float32, symmetric where F is.

    Raises:
        UserError: `norm` is unknown, or `power` is not above 0.
    """
    if norm not in NORMS:
        raise UserError(f"predictor.norm: got {norm!r}, takes one of {', '.join(NORMS)}")
    if not 0 < power < float("inf"):
        raise UserError(f"predictor.power: got {power}, takes a number above 0")
    if power == 1 and floor == 0 and norm != "max":
        return corr / _size(corr, norm) + eps * jnp.eye(corr.shape[0], dtype=corr.dtype)
    s, vectors = symmetric_eigh(corr)
    s = jnp.maximum(s, 0)
    share = s / (_positive(s[-1]) if norm == "max" else _size(corr, norm))
    p = (jnp.sqrt(share) if power == 0.5 else share**power) + eps
    return from_spectrum(vectors, jnp.maximum(p, floor))


def _size(corr: jax.Array, norm: str) -> jax.Array:
    """Return the norm of F's eigenvalues that needs none of them, 1 where it is 0."""
    if norm == "none":
        return jnp.ones((), corr.dtype)
    return _positive(frobenius_norm(corr) if norm == "frobenius" else jnp.trace(corr))


def _positive(size: jax.Array) -> jax.Array:
    return jnp.where(size > 0, size, 1)


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
    if eps_mode == "relative":
        return direct_set(corr, 0.5, eps, "max", floor)
    s, vectors = symmetric_eigh(corr)
    s = jnp.maximum(s, 0)
    top = s[-1]
    if eps_mode == "literal":
        p = jnp.sqrt(s) + eps * top
    else:
        p = jnp.sqrt(jnp.minimum(s / _positive(top), top)) + eps
    return from_spectrum(vectors, jnp.maximum(p, floor))


def direct_copy(corr: jax.Array, eps: float = 0.3) -> jax.Array:
    """Compute DirectCopy, W_p = F / ||F||_F + eps I, from F (D, D).

    Wang et al. 2021 (arXiv 2110.04947). It needs no eigenvectors.
    """
    return direct_set(corr, 1.0, eps, "frobenius")


def optimal(corr: jax.Array, cross: jax.Array, ridge: float = 0.01) -> jax.Array:
    """Compute the best linear predictor, W_p = C (F + ridge tr(F)/D I)⁻¹.

    It minimises E ||W_p z - t||² + ridge tr(F)/D ||W_p||² over W_p: the gradient by W_p is
    2 (W_p F - C + ridge tr(F)/D W_p), and F is positive. So it is the plug-in optimal predictor of
    Tian et al. 2021 (arXiv 2102.06810), table 1, with a ridge in units of F's mean eigenvalue, in
    which F's scale cancels. Their code (`predictor_reg=solve`) has an absolute ridge, and by
    default puts the inverse on the left of C, which is the minimum where both commute alone.

    Args:
        corr: F = E z zᵀ (D, D) float32 of the online network's projections.
        cross: C = E t zᵀ (D, D) of the target of one view and the projection of the other.
        ridge: above 0.

    Returns:
        W_p (D, D) float32; 0 where F is.
    """
    size = _positive(jnp.trace(corr)) / corr.shape[0]
    s, vectors = symmetric_eigh(corr / size)
    return matmul(cross / size, from_spectrum(vectors, 1 / (jnp.maximum(s, 0) + ridge)))
