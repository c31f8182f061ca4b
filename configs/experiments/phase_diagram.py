"""Which modes collapse? Decay and learning rate of the predictor, with and without an average of
the target: what the linear theory predicts, beside what a linear network and a network on
scikit-learn's digits do.

    python launch.py --config configs/experiments/phase_diagram.py --workdir runs/phase_diagram

Needs diffrax: pip install -e '.[theory]'. Five minutes on two busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "phase_diagram"
    config.seed = 0  # the first one
    config.seeds = 2
    config.cells = 10  # along each axis
    config.eta_p = (0.02, 0.5)  # decay of the predictor in the flow's time: the ends of the axis
    # learning rate of the predictor over the encoder's: the ends of the axis
    config.alpha_p = (0.03, 3.0)
    config.eta_s = 0.1  # decay of all else in the flow's time
    config.beta = 0.1  # rate of the target's average in the flow's time, where there is one
    config.p = 0.1  # the predictor begins as p times the identity
    config.s = 0.1  # mean eigenvalue of the features' correlation at the start
    config.learning_rate = 0.1  # of the encoder: the flow's time that one step takes
    config.dim = 8  # of the features that are compared: so many modes

    config.twin = ConfigDict()
    config.twin.time = 200.0  # of the flow, learning_rate of which is one step
    config.twin.inputs = 16  # N of W (dim, N), drawn at random: the more, the more alike its modes
    config.twin.sigma2 = 0.1  # variance of the views around their mean, that of the means being 1

    config.digits = ConfigDict()
    config.digits.losses = ("cosine", "euclidean")  # the second is the theory's own
    config.digits.time = 100.0  # as the twin's
    config.digits.batch_size = 64
    # of every pixel of a view, in units of the pixels' standard deviation
    config.digits.noise = 0.3
    config.digits.width = 32  # of the encoder's one layer, and of the projector's hidden one
    return config
