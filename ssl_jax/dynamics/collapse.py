"""Signs of collapse, and the words for them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.linalg import asymmetry, effective_rank, symmetric_eigh
from ssl_jax.losses import unit

# Relative spread under which the projections are, for all that a cosine sees, one single point. A healthy run
# stands between 0.5 and 1; the replication's collapsed runs end far below.
SPREAD_FLOOR = 0.1
# Effective rank of the uncentred correlation under which less than two directions carry the projections.
RANK_FLOOR = 1.5


def relative_spread(z: jax.Array) -> jax.Array:
    """sqrt(D) times the mean standard deviation of the normalised projections z (B, D), about 1 when they fill
    the sphere evenly and 0 when all are equal (Chen & He 2021, arXiv 2011.10566, section 4.1).
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


class Verdict(NamedTuple):
    """`collapsed`, and a sentence that says by which sign and what to turn."""

    collapsed: bool
    words: str


def verdict(spread: float, rank: float, dim: int, *, tau: float, symmetric: bool, predictor_decay: float) -> Verdict:
    """Reads the last signs of a run. The advice follows Tian et al. 2021, sections 3 and 4: a target average, a
    predictor left asymmetric or a stronger decay or learning rate of the predictor each widen the basin of learning.
    """
    signs = f"relative spread {spread:.3f} (a healthy run: above 0.5), effective rank {rank:.1f} of {dim}"
    if spread >= SPREAD_FLOOR and rank >= RANK_FLOOR:
        return Verdict(False, f"not collapsed: {signs}")
    knobs = []
    if tau == 0:
        knobs.append("average the target (target.tau=0.996)")
    if symmetric:
        knobs.append("leave the predictor asymmetric (predictor.symmetric=False)")
    knobs.append(
        "raise optimizer.predictor.learning_rate, or optimizer.predictor.weight_decay "
        f"(now {predictor_decay:g}) above the encoder's"
    )
    return Verdict(True, f"COLLAPSED: {signs}. Turn: {'; or '.join(knobs)}")
