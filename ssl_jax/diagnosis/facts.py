"""What the doctor knows of a run, and what he says of it."""

from typing import NamedTuple

from ssl_jax.losses import OBJECTIVES
from ssl_jax.predictors import make_predictor


class Facts(NamedTuple):
    """What of a run's configuration decides; fields as in configs/defaults.py. `tau`: target.tau, 0 for no average.
    A predictor's rate or decay of None is that of the rest. `optimizer`: the theory is of gradient descent, so that
    only "sgd" and "momentum" have numbers in it.
    """

    dim: int
    tau: float
    symmetric: bool
    kind: str
    learning_rate: float
    predictor_learning_rate: float | None
    weight_decay: float
    predictor_weight_decay: float | None
    momentum: float
    decay: str
    decay_scale: str
    loss_scale: float
    loss: str
    total_steps: int
    optimizer: str = "momentum"

    @property
    def learned(self) -> bool:
        """Whether the predictor is trained, not written down in closed form."""
        return not make_predictor(self.kind, self.dim).closed_form

    @property
    def sees_scale(self) -> bool:
        """Whether the loss sees how long predictions and projections are."""
        return OBJECTIVES[self.loss].sees_scale


class Diagnosis(NamedTuple):
    """state: "too early" | "healthy" | "dimensional collapse" | "complete collapse" | "rank-one explosion" |
    "divergence". since: the step at which it set in, None where there is nothing to date. rank: effective rank of F,
    of `dim`. certainty: "sure" | "likely" | "unsure", a colon and why.
    """

    state: str
    since: int | None
    rank: float
    dim: int
    signs: tuple[str, ...]
    advice: tuple[str, ...]
    certainty: str

    @property
    def collapsed(self) -> bool:
        return self.state in COLLAPSED

    @property
    def words(self) -> str:
        """One line."""
        begun = "" if self.since is None else f" since step {self.since}"
        mend = f". To mend it: {self.advice[0].split(' (')[0]}" if self.advice else ""
        return f"{self.state}{begun} ({self.certainty.split(':')[0]}): {'; '.join(self.signs[:3])}{mend}"


COLLAPSED = ("dimensional collapse", "complete collapse", "rank-one explosion")
MEANING = {
    "too early": "too few steps, or a run still on its way up, to tell learning from collapse",
    "healthy": "different images have different projections, in more than one direction",
    "dimensional collapse": "the projections of all images lie (nearly) on one line: the network tells only on which "
    "side an image is, or how far out",
    "complete collapse": "all images have the same projection: the loss is low since nothing is left to predict",
    "rank-one explosion": "one direction has taken over the projections and its size does not shrink: the other "
    "dimensions are lost beside it",
    "divergence": "the numbers are not finite, or the weights have grown far beyond any use",
}
