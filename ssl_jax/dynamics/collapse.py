"""Signs of collapse, and the words for them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.linalg import asymmetry, effective_rank, symmetric_eigh
from ssl_jax.losses import unit

# Relative spread under which the projections are, for all that a cosine sees, one single point; 1 is an even sphere.
SPREAD_FLOOR = 0.1
# Effective rank of the uncentred correlation, as a share of D, under which too few directions carry the projections.
# The replication's stored spectra after 100 epochs (D = 128) leave a gap to put it in: BYOL 22.6, symmetric BYOL 41.7
# and SimSiam 8.5 (6.6%) learned, symmetric SimSiam with 1.02 (0.8%) did not.
RANK_SHARE = 0.04
RANK_FLOOR = 1.5  # the same for small D: less than two directions


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


class Verdict(NamedTuple):
    """`collapsed`, and a sentence that says by which sign and what to turn."""

    collapsed: bool
    words: str


def verdict(
    spread: float, rank: float, dim: int, *, tau: float, symmetric: bool, learned: bool, predictor_decay: float
) -> Verdict:
    """Reads the last signs of a run. The advice follows Tian et al. 2021, sections 3 and 4: a target average, a
    predictor left asymmetric, and a stronger decay or learning rate of a `learned` one widen the basin of learning.
    """
    signs = f"relative spread {spread:.3f} (even sphere: 1), effective rank {rank:.1f} of {dim}"
    spreads, fills = spread >= SPREAD_FLOOR, rank >= max(RANK_FLOOR, RANK_SHARE * dim)
    if spreads and fills:
        return Verdict(False, f"not collapsed: {signs}")
    knobs = []
    if tau == 0:
        knobs.append("average the target (target.tau=0.996)")
    if symmetric:
        knobs.append("leave the predictor asymmetric (predictor.symmetric=False)")
    if learned:
        knobs.append(
            "raise optimizer.predictor.learning_rate, or optimizer.predictor.weight_decay "
            f"(now {predictor_decay:g}) above the encoder's"
        )
    else:  # the optimizer has no say in a predictor in closed form
        knobs.append("lower optimizer.learning_rate")
    to_what = "to few dimensions" if spreads else "to one point"
    return Verdict(True, f"COLLAPSED {to_what}: {signs}. To mend it: {'; or '.join(knobs)}")
