"""Zero-shot decay: trained networks whose weights are shrunk to zero in a hundred steps (the
paper's figure 3a).

    python launch.py --config configs/experiments/zero_shot.py --workdir runs/zero_shot

The first network is the paper's kind: LayerNorm before products with GELU, and skip connections.
The others show what the norm has to do with it. Each is trained without decay, 10 epochs at its own
learning rate, the best by held-out images of one seed:

    convnext    1e-3 .441 <-   2e-3 .439   5e-3 .440
    layer_norm  2e-3 .445   5e-3 .461   1e-2 .482 <-
    no_norm     1e-3 .437   2e-3 .469 <-   5e-3 .458

and that of robustness.py for batch_norm.
"""

from ml_collections import ConfigDict

from configs.experiments.common import base


def get_config() -> ConfigDict:
    config = base("zero_shot")
    config.seeds = 3
    config.every = 1  # s = 0, 1, ..., 100
    config.data.test_size = 2000
    config.networks = ConfigDict()  # fields that differ from `encoder`'s, and the learning rate
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
