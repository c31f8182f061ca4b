"""Zero-shot decay: trained networks whose weights are shrunk to zero in a hundred steps (the
paper's figure 3a).

    python launch.py --config configs/experiments/zero_shot.py --workdir runs/zero_shot
    python launch.py --config configs/experiments/zero_shot.py:full --workdir runs/zero_shot-full

The first network is the paper's kind: LayerNorm before products with GELU, and skip connections.
The others show what the norm has to do with it. Each is trained without decay, 10 epochs at its own
learning rate, the best by held-out images of one seed:

    convnext    1e-3 .441 <-   2e-3 .439   5e-3 .440
    layer_norm  2e-3 .445   5e-3 .461   1e-2 .482 <-
    no_norm     1e-3 .437   2e-3 .469 <-   5e-3 .458

and that of robustness.py for batch_norm. At full scale, the paper's two networks and learning rate.
"""

from ml_collections import ConfigDict

from configs.experiments.common import SCALES, base, full_scale
from ssl_jax.errors import UserError, nearest


def get_config(scale: str = "small") -> ConfigDict:
    if scale not in SCALES:
        raise UserError(f"scale: got {scale!r}, {nearest(scale, SCALES)}")
    config = base("zero_shot")
    config.seeds = 3
    config.every = 1  # s = 0, 1, ..., 100
    config.networks = ConfigDict()  # fields that differ from `encoder`'s, and the learning rate
    if scale == "full":
        full_scale(config)
        for name in ("convnext_tiny", "swin_tiny"):
            config.networks[name] = {"name": name, "width": 96, "learning_rate": 1e-4}
        return config
    config.data.test_size = 2000
    config.networks.convnext = {
        "name": "convnext_tiny",
        "width": 16,
        "depth": 1,
        "learning_rate": 1e-3,
    }
    config.networks.layer_norm = {"norm": "layer", "learning_rate": 1e-2}
    config.networks.batch_norm = {"norm": "batch", "learning_rate": 5e-3}
    config.networks.no_norm = {"norm": "none", "learning_rate": 2e-3}
    return config
