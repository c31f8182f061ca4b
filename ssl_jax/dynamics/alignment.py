"""How far the predictor's eigenspace has turned into that of the correlation: what the theory rests on, measured."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.linalg import matmul, symmetric_eigh


def eigenspace_alignment(corr: jax.Array, w: jax.Array) -> dict[str, jax.Array]:
    """Spectra of the correlation F and of the predictor W_p, both (D, D), and how they lie to each other.

    corr_eigenvalues (D,): s_j of F, largest first, with eigenvectors v_j.
    predictor_eigenvalues (D,): real parts of the eigenvalues of W_p (which need not be symmetric), largest first.
    alignment (D,): cos(v_j, W_p v_j) = v_j . W_p v_j / ||W_p v_j||, signed, in the order of s_j: 1 where v_j is an
        eigenvector of W_p with a positive eigenvalue, 0 where W_p v_j is zero.
    asymmetry (): sum |W_p - W_p^T| / sum |W_p|, entry by entry, as the replication's code has it; 0 for a symmetric
        matrix. `linalg.asymmetry` is the same in the Frobenius norm.

    Höppe et al. 2022 (ReScience C), Figures 2 to 4; its two-layer predictor stands for W_p as the product of its
    matrices (`Predictor.matrix`), without bias, norm and ReLU in between.
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
    """Descending. By NumPy on the host: JAX has no eigenvalues of general matrices on an accelerator."""

    def host(w):
        if not np.isfinite(w).all():  # a run that diverges ends with its own message, not with LAPACK's
            return np.full(w.shape[:-1], np.nan, w.dtype)
        return -np.sort(-np.linalg.eigvals(w).real, axis=-1).astype(w.dtype)

    return jax.pure_callback(host, jax.ShapeDtypeStruct(w.shape[:1], w.dtype), w, vmap_method="broadcast_all")
