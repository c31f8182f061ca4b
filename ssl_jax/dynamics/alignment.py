"""Alignment of the predictor's eigenspace with that of the correlation, the theory's assumption."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.linalg import matmul, symmetric_eigh


def eigenspace_alignment(corr: jax.Array, w: jax.Array) -> dict[str, jax.Array]:
    """Return the spectra of the correlation F and of the predictor W_p, and their alignment.

    Source: Höppe et al. 2022 (ReScience C), Figures 2 to 4. Their two-layer predictor stands for
    W_p as the product of its matrices (`Predictor.matrix`), without bias, norm and ReLU.

    Args:
        corr: F, (D, D), symmetric.
        w: W_p, (D, D); it need not be symmetric.

    Returns:
        A dict of these entries.

        * corr_eigenvalues (D,): s_j of F, largest first, with eigenvectors v_j.
        * predictor_eigenvalues (D,): real parts of the eigenvalues of W_p, largest first.
        * alignment (D,): cos(v_j, W_p v_j) = v_j . W_p v_j / ||W_p v_j||, signed, in the order of
          s_j. It is 1 where v_j is an eigenvector of W_p with a positive eigenvalue, and 0 where
          W_p v_j is zero.
        * asymmetry (): sum |W_p - W_p^T| / sum |W_p| over entries, as in the replication's code; 0
          for a symmetric matrix. `linalg.asymmetry` is the same in the Frobenius norm.
    """
    chex.assert_rank([corr, w], 2)
    chex.assert_equal_shape([corr, w])
    s, v = symmetric_eigh(corr)
    s, v = s[::-1], v[:, ::-1]
    moved = matmul(w, v)
    length = jnp.linalg.norm(moved, axis=0)
    cosine = jnp.sum(v * moved, axis=0) / jnp.where(length > 0, length, 1)
    total = jnp.abs(w).sum()
    return {
        "corr_eigenvalues": s,
        "predictor_eigenvalues": _real_eigenvalues(w),
        "alignment": cosine,
        "asymmetry": jnp.abs(w - w.T).sum() / jnp.maximum(total, jnp.finfo(w.dtype).tiny),
    }


def _real_eigenvalues(w: jax.Array) -> jax.Array:
    """Return the real parts of the eigenvalues of w (D, D), largest first.

    NumPy computes them on the host: JAX has no eigenvalues of general matrices on an accelerator.
    """

    def host(w: np.ndarray) -> np.ndarray:
        if not np.isfinite(
            w
        ).all():  # a run that diverges ends with its own message, not with LAPACK's
            return np.full(w.shape[:-1], np.nan, w.dtype)
        return -np.sort(-np.linalg.eigvals(w).real, axis=-1).astype(w.dtype)

    return jax.pure_callback(
        host, jax.ShapeDtypeStruct(w.shape[:1], w.dtype), w, vmap_method="broadcast_all"
    )
