"""Where does a small network on scikit-learn's digits lose its modes under the cosine loss, and
where does the theory of that loss say that it does? The ratio α_p s / p² without decay, η_p / η_s
with it, eps of DirectPred, and the grid of `phase_diagram.py` again.

    python launch.py --config configs/experiments/cosine_borders.py --workdir runs/cosine_borders

Six minutes on two busy CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = "cosine_borders"
    config.seed = 0  # the first one
    config.seeds = 3
    config.points = 11  # of each scan
    config.balance = (1e-4, 10.0)  # ends of α_p s / p², without decay
    config.decay = (0.1, 10.0)  # ends of η_p / η_s
    config.eps = (0.01, 10.0)  # ends of DirectPred's eps
    config.noises = (0.3, 1.0)  # of every pixel of a view, of the scan of the balance
    config.noise = 1.0  # of the other scans
    config.time = 100.0  # of the flow, learning_rate of which is one step
    config.early = 0.25  # share of that time after which the modes are counted first
    config.learning_rate = 0.1
    config.batch_size = 64
    config.width = 32  # of the encoder's one layer, and of the projector's hidden one
    config.dim = 8  # of the projections: so many modes
    config.s = 0.1  # mean eigenvalue of the features' centred correlation at the start
    config.eta_s = 0.1  # decay of all but the predictor, where there is decay
    config.beta = 0.1  # rate of the target's average, where there is one

    config.grid = ConfigDict()  # of phase_diagram.py
    config.grid.seeds = 2
    config.grid.cells = 10
    config.grid.eta_p = (0.02, 0.5)
    config.grid.alpha_p = (0.03, 3.0)
    config.grid.p = 0.1
    config.grid.noise = 0.3
    return config
