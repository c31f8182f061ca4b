"""CIFAR-10 at the replication's full scale: `configs/cifar10.py:METHOD`.

Höppe et al. 2022, section 4: ResNet-18, batch 128, SGD 0.03 with momentum 0.9 and L2 4e-4, tau
0.996, eps 0.1, rho 0.3, 100 epochs, linear probe of 100 epochs. Published linear accuracies (Tables
1 and 2), one unseeded run each: byol 84.2, byol_sym 85.7, simsiam 79.4, simsiam_sym 20.3, linear
83.3, directpred 84.7, directpred5 84.1, linear_noema 77.8, directpred_noema 78.6 (as committed,
that run never set its predictor).

Measured here: byol, seed 0, on one NVIDIA H200 (jax 0.11.2, bfloat16): linear 85.90, ridge 84.09,
kNN 81.56; untrained 34.27 linear. Training took 352 s, with compilation and twenty kNN evaluations,
the whole command 432 s with the probes (results/table1/full/byol/seed-0.json, by
configs/sweeps/table1.py). The same settings without a sweep:

    python launch.py --config configs/cifar10.py:byol --workdir runs/byol
    --config.precision=bfloat16

On two CPU cores: 40 images/s (benchmarks/README.md), a day and a half for 100 epochs; not run.
"""

from configs import defaults
from configs.methods import apply_method


def get_config(method: str = "byol"):
    return apply_method(defaults.get_config(), method)
