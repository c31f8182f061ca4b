"""The configuration that a diagnosis reads, and the diagnosis."""

from typing import NamedTuple

from ssl_jax.losses import OBJECTIVES
from ssl_jax.predictors import make_predictor


class SetBy(NamedTuple):
    """How a predictor in closed form follows from F, p = (f / ‖f‖)^power + eps."""

    power: float
    eps: float
    norm: str  # of f, as `dynamics.cosine.direct_spectrum` takes it


class Facts(NamedTuple):
    """The part of a run's configuration that a diagnosis needs; names as in its table of fields."""

    dim: int  # D, width of the projections
    tau: float  # target.tau; 0 is no average
    symmetric: bool
    kind: str  # predictor.kind
    learning_rate: float
    predictor_learning_rate: float | None  # None: that of the rest
    weight_decay: float
    predictor_weight_decay: float | None  # None: that of the rest
    momentum: float
    decay: str
    decay_scale: str
    loss_scale: float
    loss: str
    total_steps: int
    # The theory is of gradient descent: it has numbers for "sgd" and "momentum" only.
    optimizer: str = "momentum"
    # None: the predictor is learned, or its spectrum depends on the start
    set_by: SetBy | None = None

    @property
    def learned(self) -> bool:
        """Whether the predictor is trained, not written down in closed form."""
        return not make_predictor(self.kind, self.dim).closed_form

    @property
    def sees_scale(self) -> bool:
        """Whether the loss sees how long predictions and projections are."""
        return OBJECTIVES[self.loss].sees_scale


class Diagnosis(NamedTuple):
    """The state of a run, with its signs and advice."""

    state: str  # a key of MEANING
    since: int | None  # the step at which the state began; None for "healthy" and "too early"
    rank: float  # effective rank of F
    dim: int  # D, the largest rank possible
    signs: tuple[str, ...]  # sentences, what was measured
    advice: tuple[str, ...]  # sentences, the most certain first
    certainty: str  # "sure", "likely" or "unsure", a colon and the reason
    settles: str = ""  # what will settle it, and by which step; "" where nothing is open

    @property
    def collapsed(self) -> bool:
        return self.state in COLLAPSED

    @property
    def words(self) -> str:
        """Return the diagnosis in one line."""
        begun = "" if self.since is None else f" since step {self.since}"
        remedy = f". Remedy: {self.advice[0].split(' (')[0]}" if self.advice else ""
        certainty, signs = self.certainty.split(":")[0], "; ".join(self.signs[:3])
        settles = f". Settled {self.settles}" if self.settles else ""
        return f"{self.state}{begun} ({certainty}): {signs}{settles}{remedy}"


COLLAPSED = ("dimensional collapse", "complete collapse", "rank-one explosion")
MEANING = {
    "too early": "too few steps, or a run still on its way up, to tell learning from collapse",
    "healthy": "different images have different projections, in more than one direction",
    "dimensional collapse": "the projections of all images lie (nearly) on one line: the network "
    "shows only on which side an image is, or how far out",
    "complete collapse": "all images have the same projection: the loss is low since nothing is "
    "left to predict",
    "rank-one explosion": "one direction has taken over the projections and its size does not "
    "shrink: the other dimensions are lost beside it",
    "divergence": "the numbers are not finite, or the weights have grown far beyond any use",
}
