"""The methods, each as what it changes of BYOL with a two-layer predictor."""

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest

LINEAR = {"predictor.kind": "linear"}
DIRECTPRED = {"predictor.kind": "direct_pred"}
# Wang et al. 2021 (arXiv 2110.04947) with the replication's constants.
DIRECTCOPY = {"predictor.kind": "direct_copy", "predictor.eps": 0.3, "predictor.rho": 0.5}
# Wang et al.'s DirectSet with the power 1 and DirectPred's norm and constants.
DIRECTSET = {"predictor.kind": "direct_set", "predictor.power": 1.0}
CENTRED = DIRECTPRED | {"predictor.centre": True}
# Halvagal et al. 2023 (arXiv 2212.04858), with DirectPred's constants: published are eps 0, and rho
# 0.998 with an average and 0.5 without. Its squared distance sees scale, so F is left as it
# is; clipped, since that begins large.
ISOLOSS = DIRECTPRED | {"loss": "iso_cosine"}
ISOLOSS_EUCLIDEAN = {
    "predictor.kind": "direct_set",
    "predictor.norm": "none",
    "predictor.eps": 0.0,
    "loss": "iso_euclidean",
    "optimizer.clip_norm": 1.0,
}
# Tian et al. 2021 (arXiv 2102.06810), table 1.
OPTIMAL = {"predictor.kind": "optimal"}
# VICReg's hinge, Bardes et al. 2022 (arXiv 2105.04906).
VARIANCE = {"regularisers.variance": 1.0}
# Richemond et al. 2020 (arXiv 2010.10241): no statistics of the batch anywhere.
GROUP_NORM = {
    "encoder.norm": "group",
    "encoder.standardise": True,
    "projector.norm": "group",
    "projector.standardise": True,
}
NO_EMA = {"target.tau": 0.0}
SYMMETRIC = {"predictor.symmetric": True}

METHODS: dict[str, dict] = {
    "byol": {},
    "byol_sym": SYMMETRIC,
    "simsiam": NO_EMA,
    "simsiam_sym": NO_EMA | SYMMETRIC,
    "linear": LINEAR,
    "linear_noema": LINEAR | NO_EMA,
    "directpred": DIRECTPRED,
    "directpred_noema": DIRECTPRED | NO_EMA,
    "directpred5": DIRECTPRED | {"predictor.every": 5},
    "directcopy": DIRECTCOPY,
    "directcopy_noema": DIRECTCOPY | NO_EMA,
    "directset": DIRECTSET,
    "directpred_centred": CENTRED,
    "directpred_variance": DIRECTPRED | VARIANCE,
    "isoloss": ISOLOSS,
    "isoloss_noema": ISOLOSS | NO_EMA,
    "isoloss_euclidean": ISOLOSS_EUCLIDEAN,
    "isoloss_euclidean_noema": ISOLOSS_EUCLIDEAN | NO_EMA,
    "optimal": OPTIMAL,
    "optimal_noema": OPTIMAL | NO_EMA,
    "simsiam_sym_variance": NO_EMA | SYMMETRIC | VARIANCE,
    # Without batch statistics a slow predictor leaves the mean alone: docs/methods.md.
    "byol_gn": GROUP_NORM
    | {"optimizer.learning_rate": 0.005, "optimizer.predictor.learning_rate": 2.0},
}


def apply_method(config: ConfigDict, method: str) -> ConfigDict:
    """`config` with the fields of `method`; UserError for a name that is not there."""
    if method not in METHODS:
        raise UserError(f"method: got {method!r}, {nearest(method, METHODS)}")
    config.method = method
    config.update_from_flattened_dict(METHODS[method])
    return config


# Where in the step the weight decay acts: METHOD-KIND, e.g. byol-pwd.
DECAYS = {
    "wd": {"optimizer.decay": "decoupled"},
    "rwd": {"optimizer.decay": "realtime"},
    "pwd": {"optimizer.decay": "pre"},
    "lpwd": {"optimizer.decay": "pre", "optimizer.layerwise": "mean"},
}


def apply_decay(config: ConfigDict, kind: str) -> ConfigDict:
    """`config` with this kind of decay in place of L2, at the strength that momentum gives L2.

    Under heavy ball a constant pull of lambda theta moves a weight by eta lambda / (1 - mu) a step
    in the long run, so the kinds that do not pass through the buffer get lambda / (1 - mu).
    """
    if kind not in DECAYS:
        raise UserError(f"decay: got {kind!r}, {nearest(kind, DECAYS)}")
    config.method = f"{config.method}-{kind}"
    config.optimizer.weight_decay /= 1 - config.optimizer.momentum
    config.update_from_flattened_dict(DECAYS[kind])
    return config
