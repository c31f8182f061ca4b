"""WD against LPWD on networks of several sizes (the paper's figure 5).

    python launch.py --config configs/experiments/model_scale.py --workdir runs/model_scale
    python launch.py --config configs/experiments/model_scale.py:full \\
        --workdir runs/model_scale-full

Each arm of each size has the decay that held-out images choose, by a seed that is then left out.
"""

from ml_collections import ConfigDict

from configs.experiments.common import SCALES, base, full_scale
from ssl_jax.errors import UserError, nearest


def get_config(scale: str = "small") -> ConfigDict:
    if scale not in SCALES:
        raise UserError(f"scale: got {scale!r}, {nearest(scale, SCALES)}")
    config = base("model_scale")
    config.seeds = 3  # fresh ones, after the one by which the decay is chosen
    config.arms = ("WD", "LPWD")
    # NAME, NAME-WIDTH or NAME-WIDTH-DEPTH of an encoder
    config.sizes = ("convnet-8", "convnet-16", "convnet-32")
    config.optimizer.learning_rate = 5e-3
    config.weight_decays = (0.5, 0.05)
    if scale == "full":
        full_scale(config)
        config.sizes = ("convnext_tiny", "convnext_small", "convnext_base")
        config.optimizer.learning_rate = 1e-4  # the paper's
        config.weight_decays = (0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005)
    return config
