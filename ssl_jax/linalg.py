"""Functions of one symmetric matrix, always in float32 at full precision.

By default an accelerator multiplies float32 matrices with shortened mantissas. The spectra that
decide between learning and collapse span many orders of magnitude, so every product here asks for
HIGHEST.
"""

import chex
import jax
import jax.numpy as jnp


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a @ b in full float32 precision on every backend."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def second_moment(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Compute the uncentred correlation C = (Z1ᵀZ1 + Z2ᵀZ2) / 2B of two views' projections.

    z1 and z2 are (B, D), the result is (D, D) float32. Tian et al. 2021 (arXiv 2102.06810), section
    5: F = E[f fᵀ], estimated from both views and not centred.
    """
    chex.assert_equal_shape([z1, z2])
    z1, z2 = z1.astype(jnp.float32), z2.astype(jnp.float32)
    return (matmul(z1.T, z1) + matmul(z2.T, z2)) / (2 * z1.shape[0])


def cross_moment(t: jax.Array, z: jax.Array) -> jax.Array:
    """Compute E t zᵀ = TᵀZ / B, (D, D) float32, of rows t and z (B, D); W z ≈ t wants W E z zᵀ."""
    chex.assert_equal_shape([t, z])
    return matmul(t.astype(jnp.float32).T, z.astype(jnp.float32)) / t.shape[0]


def symmetric_eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return eigenvalues (D,), ascending, and eigenvectors (D, D), by column, of (M + Mᵀ) / 2."""
    chex.assert_rank(matrix, 2)
    return jnp.linalg.eigh((matrix + matrix.T) / 2, symmetrize_input=False)


def from_spectrum(eigenvectors: jax.Array, eigenvalues: jax.Array) -> jax.Array:
    """Return U diag(p) Uᵀ for U (D, D) with eigenvectors by column and p (D,)."""
    return matmul(eigenvectors * eigenvalues[None, :], eigenvectors.T)


def effective_rank(eigenvalues: jax.Array) -> jax.Array:
    """Compute the exponential of the entropy of the eigenvalues (D,), as a number from 1 to D.

    The eigenvalues over their sum are taken as a distribution (Roy & Vetterli 2007, "The effective
    rank", eq. 4). Negative rounding errors count as zero. The zero matrix has effective rank 1.
    """
    s = jnp.maximum(eigenvalues, 0)
    share = s / jnp.maximum(s.sum(), jnp.finfo(s.dtype).tiny)
    return jnp.exp(
        -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    )


def frobenius_norm(matrix: jax.Array) -> jax.Array:
    """Return ||M||_F, (), of a matrix of any scale: no square of an entry overflows or is lost."""
    largest = jnp.max(jnp.abs(matrix))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.sum(jnp.square(matrix / scale)))


def asymmetry(matrix: jax.Array) -> jax.Array:
    """Return ||M - Mᵀ||_F / ||M||_F: 0 for a symmetric matrix, about sqrt(2) for a random one."""
    norm = frobenius_norm(matrix)
    return frobenius_norm(matrix - matrix.T) / jnp.maximum(norm, jnp.finfo(matrix.dtype).tiny)
