"""Measurements of a run's dynamics during training: of one step, of the weights, of the spectra."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ssl_jax.dynamics.alignment import eigenspace_alignment
from ssl_jax.linalg import asymmetry, effective_rank, matmul, symmetric_eigh
from ssl_jax.losses import unit
from ssl_jax.types import Params

PARTS = (
    "encoder",
    "projector",
    "predictor",
)  # the order in every array that holds one number of each
Pair = tuple[jax.Array, jax.Array]


def measure_step(
    grads: Params,
    updates: Params,
    z: Pair,
    t: Pair,
    corr: jax.Array,
    mean: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """Measure the step that is being taken.

    Args:
        grads: gradients, a tree with an entry for each of `PARTS`.
        updates: the optimizer's updates, a tree like `grads`. They include learning rate and decay,
            except for pre-decay, which has acted before.
        z: projections of the two views by the online network, (B, D) each.
        t: projections of the two views by the target network, (B, D) each.
        corr: uncentred correlation E z zᵀ of the projections, (D, D).
        mean: average over the devices.

    Returns:
        A dict of these entries.

        * gradient_norm, update_norm (3,): Euclidean norm of each of `PARTS`.
        * mean_share (): ||E z||² / E ||z||², which is 1 where all projections are one vector.
        * online_target_cosine (): mean cosine of both networks' projections of the same view; 1
          without an average.
    """
    centre = mean(jnp.mean(jnp.stack(z), axis=(0, 1)))
    cosine = mean(jnp.mean(jnp.sum(unit(jnp.stack(z)) * unit(jnp.stack(t)), axis=-1)))
    return {
        "gradient_norm": norms(grads),
        "update_norm": norms(updates),
        "mean_share": jnp.sum(jnp.square(centre))
        / jnp.maximum(jnp.trace(corr), jnp.finfo(corr.dtype).tiny),
        "online_target_cosine": cosine,
    }


def measure_views(
    corr: jax.Array,
    z: Pair,
    due: jax.Array,
    mean: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    """Measure how much of each mode of the correlation F the two views of an image share.

    Args:
        corr: F, (D, D), with eigenvectors v_j. F is of noisy views, uncentred.
        z: projections of the two views by the online network, (B, D) each.
        due: (), whether to; it takes an eigendecomposition.
        mean: average over the devices.

    Returns:
        A dict of view_correlation (D,): c_j = v_j.E[z₁ z₂ᵀ]v_j / v_j.E[z zᵀ]v_j of this batch, in
        the order of `eigenspace_alignment`. The direction of the mean has almost 1. NaN where it is
        not due.
    """

    def moments(corr: jax.Array) -> jax.Array:
        v = symmetric_eigh(corr)[1][:, ::-1]
        one, two = (matmul(view.astype(jnp.float32), v) for view in z)
        own = (jnp.square(one) + jnp.square(two)) / 2
        return jnp.stack([jnp.mean(one * two, axis=0), jnp.mean(own, axis=0)])

    shared, own = mean(
        jax.lax.cond(due, moments, lambda corr: jnp.full((2, len(corr)), jnp.nan), corr)
    )
    return {"view_correlation": shared / jnp.maximum(own, jnp.finfo(own.dtype).tiny)}


def norms(tree: Params) -> jax.Array:
    """Return the Euclidean norm of each of `PARTS`, (3,)."""
    return jnp.stack([optax.tree.norm(tree[part]) for part in PARTS])


def measure_weights(params: Params, target: Params) -> dict[str, jax.Array]:
    """Measure the online weights and compare them with the target's.

    parameter_norm (3,) is the norm of each of `PARTS`. weight_cosine () is the cosine between
    online and target weights, NaN where there is no target.
    """
    shared = {part: params[part] for part in target}
    sizes = optax.tree.norm(shared) * optax.tree.norm(target)
    cosine = optax.tree.vdot(shared, target) / sizes if target else jnp.nan
    return {"parameter_norm": norms(params), "weight_cosine": jnp.asarray(cosine)}


def measure_spectra(corr: jax.Array, w: jax.Array) -> dict[str, jax.Array]:
    """Measure the spectra of the correlation F and the predictor W_p.

    Args:
        corr: F, (D, D), symmetric.
        w: W_p, (D, D).

    Returns:
        All entries of `eigenspace_alignment`, with its asymmetry under the name asymmetry_l1, and
        mode_predictor (D,): p_j = v_j . W_p v_j with F's eigenvectors v_j, in the order of s_j.
        asymmetry (): ||W_p - W_pᵀ|| / ||W_p||.
        effective_rank (): that of F.
        commutator (): ||[F, W_p]||.
        commutator_relative (): the commutator divided by ||F|| ||W_p||.
    """
    aligned = eigenspace_alignment(corr, w)
    v = symmetric_eigh(corr)[1][:, ::-1]
    commutator = jnp.linalg.norm(matmul(corr, w) - matmul(w, corr))
    scale = jnp.linalg.norm(corr) * jnp.linalg.norm(w)
    return aligned | {
        "asymmetry_l1": aligned["asymmetry"],
        "mode_predictor": jnp.sum(v * matmul(w, v), axis=0),
        "asymmetry": asymmetry(w),
        "effective_rank": effective_rank(aligned["corr_eigenvalues"]),
        "commutator": commutator,
        "commutator_relative": commutator / jnp.maximum(scale, jnp.finfo(w.dtype).tiny),
    }
