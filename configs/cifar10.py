"""CIFAR-10 at the replication's full scale: `configs/cifar10.py:METHOD`.

Höppe et al. 2022, section 4: ResNet-18, batch 128, SGD 0.03 with momentum 0.9 and L2 4e-4, tau 0.996, eps 0.1,
rho 0.3, 100 epochs, linear probe of 100 epochs. Published linear accuracies (Tables 1 and 2), one unseeded run each:
byol 84.2, byol_sym 85.7, simsiam 79.4, simsiam_sym 20.3, linear 83.3, directpred 84.7, directpred5 84.1,
linear_noema 77.8, directpred_noema 78.6 (as committed, that run never set its predictor).

Measured here: no run to its end yet. On two cores of an AMD EPYC, float32, steps 2 to 5 of byol took 13.4 s each
(9.6 images/s; --config.data.train_size=640 --config.epochs=1 --config.log_every=1), six days for 100 epochs. On a GPU:
python launch.py --config configs/cifar10.py:byol --workdir runs/byol --config.precision=bfloat16
"""

from configs import defaults
from configs.methods import apply_method


def get_config(method: str = "byol"):
    return apply_method(defaults.get_config(), method)
