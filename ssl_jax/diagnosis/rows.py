"""The state that each row of a run shows by itself, by thresholds on its signs.

The thresholds are here, each with its evidence; `diagnosis.state` says what the signs are.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.diagnosis.facts import Facts
from ssl_jax.diagnosis.signs import Signs, latched

# Of each pair, an alarm begins at the first and ends at the second. The noise of a batch is smaller
# than the gap.

# Content below which projections count as a line. 1.5 is the effective rank of two directions of
# which one has 7/8. Stored runs (results/): the known collapses of configs/cifar10_small.py have
# 1.0, all that learn 2.3 to 6.7. Of simsiam under strong decay (decay_ssl), those whose linear
# probe fell to 25-28 % (untrained: 37) have 1.0 to 1.44, those at 33-36 % have 1.8 and 2.2.
LINE = (1.5, 1.8)
THIN = 2.5  # hardly more directions than a plane: no alarm, but no certainty either
# Effective rank of F below which it holds no more than the mean and one direction. It raises an
# alarm only where the largest eigenvalue holds: a healthy run may begin there, but its mean fades.
ONE = (2.0, 2.3)
# Largest eigenvalue, divided by that at the start, where one direction has taken over. It is .7 to
# 35 in the replication's symmetric SimSiam over 100 epochs, .2 to 5 in this project's three known
# collapses. Runs that learn, and dimensions that fade, end at .002 to .06. A single point keeps the
# length of its mean, so there the eigenvalue has to grow (GROWN).
HELD = (0.25, 0.125)
GROWN = 4.0
# Mean cosine between different images above which the cosine sees one point. Runs of this project
# that fail otherwise stop at .95, those that learn end at .75 or less. .99 leaves a spread of .1.
POINT = (0.99, 0.98)
# Largest eigenvalue, divided by that at the start, below which nothing is left where the loss
# depends on lengths (Euclidean). Learning removes the mean's: 190.8 to 1.5 (replication, BYOL),
# 1e-2.
VANISHED = 1e-4
# ||W_p||_F / sqrt(D), 1 for the identity, above which the weights have diverged under the Euclidean
# loss. The theory's p stays below tau / a <= 1; measured were 0.02 to 0.5. The cosine does not
# depend on it: 38 to 80 in runs of a predictor at 10 times the rate and without decay (table 3,
# mini), which learn as well as any.
RUNAWAY = 20.0
# A loss that sees lengths, divided by its first value; learning makes it smaller.
GROWN_LOSS = 100.0
GROWN_WEIGHTS = 100.0  # norm of a part divided by its first value, where dynamics.npz has it


class Latches(NamedTuple):
    """Which alarms are on."""

    line: bool = False  # the content is that of a line
    one: bool = False  # F holds no more than the mean and one direction
    point: bool = False  # all projections are one
    held: bool = False  # the largest eigenvalue has not faded


ALARMS = Latches._fields


def states_of_rows(
    signs: Signs, dynamics: dict, facts: Facts, first_loss: float, before: Latches
) -> tuple[np.ndarray, np.ndarray]:
    """Return the state that each row shows by itself, and its alarms.

    Args:
        signs: the signs of these rows.
        dynamics: arrays of dynamics.npz, or none.
        facts: the run's configuration.
        first_loss: the loss of the run's first row.
        before: the alarms of the row before these.

    Returns:
        Names of states, (T,): "healthy", a kind of collapse, or "divergence"; and the alarms,
        (len(ALARMS), T).
    """
    kinds = np.full(len(signs.step), "healthy", dtype="<U24")
    line = latched(signs.content < LINE[0], signs.content < LINE[1], before.line)
    one = latched(signs.rank < ONE[0], signs.rank < ONE[1], before.one)
    point = latched(signs.mean > POINT[0], signs.mean > POINT[1], before.point)
    # Under a loss that sees lengths a direction that survives rests at an eigenvalue of its own,
    # maybe above its start.
    enter, leave = (GROWN, GROWN / 2) if facts.sees_scale else HELD
    held = latched(signs.top > enter, signs.top > leave, before.held)
    kinds[line] = "dimensional collapse"
    kinds[(line | one) & held] = "rank-one explosion"
    kinds[point & ~(one & (signs.top > GROWN))] = "complete collapse"
    if facts.sees_scale:  # one point far from 0 is as bad, but so is 0
        kinds[signs.top < VANISHED] = "complete collapse"
        grown = (signs.weights > RUNAWAY) | (signs.loss > GROWN_LOSS * abs(first_loss))
        kinds[grown] = "divergence"
    kinds[signs.step >= weights_grown(dynamics)] = "divergence"
    return kinds, np.array([line, one, point, held])


def weights_grown(dynamics: dict) -> float:
    """Return the first step at which weights are GROWN_WEIGHTS times as large as at the start.

    The weights are those of one part of the network. It is inf where there is no such step.
    """
    norm = dynamics.get("parameter_norm")
    if norm is None or not len(norm):
        return np.inf
    over = (norm > GROWN_WEIGHTS * np.maximum(norm[:1], 1e-12)).any(axis=1)
    return float(dynamics["step"][np.argmax(over)]) if over.any() else np.inf
