"""What tables and figures of each experiment read of its result.json, see `workdir.schema`."""

from ssl_jax.workdir.schema import (
    ARRAY,
    CURVE,
    FLAG,
    KNOWN,
    NUMBER,
    TABLE,
    TEXT,
    WHOLE,
    WIDTH,
    Shape,
)

SCORE = {"mean": KNOWN, "interval": WIDTH}
SCORES = {"mean": CURVE, "interval": WIDTH}
GRID = {"mean": TABLE, "interval": WIDTH}
RUNS = {"epochs": WHOLE, "seeds": WHOLE}  # of the configuration
LIVES = {"alive": TABLE, "rank": TABLE}
FORECAST = LIVES | dict.fromkeys(
    ("agreement", "difference", "rank_difference", "correlation"), NUMBER
)
MAP = {"predicted": TABLE, "measured": TABLE, "agreement": NUMBER, "difference": NUMBER}

SHAPES: dict[str, dict[str, Shape]] = {
    "ablation": {
        "methods": {
            str: {
                "learning_rate": NUMBER,
                "weight_decay": NUMBER,
                "test": SCORE,
                "best_validation_epoch": SCORE,
                "mean_of_best_10_epochs": SCORE,
            }
        },
        "share": {str: NUMBER},
        "gaps": {str: {str: SCORE}},
        "deviations": {str: [KNOWN]},
        "epochs": WHOLE,
    },
    "adam_l2": {
        "dataset": TEXT,
        "weight_decays": [NUMBER],
        "measured_decay": NUMBER,
        "gradient_scale": [NUMBER],
        "variants": {
            str: {
                "test": SCORES,
                "best_decay": NUMBER,
                "test_at_best": SCORE,
                "shrinkage": [KNOWN],
                "weights_in_bin": [WHOLE],
                "shrinkage_without_gradient": KNOWN,
                "weights_without_gradient": WHOLE,
            }
        },
        "distance_between_kinds": {"SGD": SCORES, "Adam": SCORES},
    },
    "cosine_borders": {
        "steps": [WHOLE],
        "scans": {
            str: {
                "x": [NUMBER],
                "early": LIVES | {"forecasts": {str: FORECAST}},
                "end": LIVES | {"forecasts": {str: FORECAST}},
            }
        },
        "config": {"seeds": WHOLE, "grid": {"seeds": WHOLE}},
    },
    "cosine_flow": {
        "kinds": {
            str: {
                "largest": [NUMBER],
                "median": [NUMBER],
                "ratio": [NUMBER],
                "moved": [NUMBER],
                "next?": NUMBER,
                "leading?": NUMBER,
            }
        },
        "step": [NUMBER],
        "rms": {str: [NUMBER]},
        "bias": NUMBER,
        "noise": NUMBER,
        "config": {"settings": WHOLE, "steps": [WHOLE], "batch_size": WHOLE},
    },
    "model_scale": {
        "learning_rate": NUMBER,
        "sizes": {
            str: {
                "parameters": WHOLE,
                "arms": {str: {"weight_decay": NUMBER, "test": SCORE, "ahead_of_WD": SCORE}},
            }
        },
    },
    "optimizers": {
        "dataset": TEXT,
        "rates": [NUMBER],
        "eps": [NUMBER],
        "rho": [NUMBER],
        "optimizers": {
            str: {
                "test": SCORES,
                "best_rate": NUMBER,
                "at_the_edge": FLAG,
                "test_at_best": SCORE,
            }
        },
        "adadelta": {"test": SCORES},
        "config": RUNS,
    },
    "phase_diagram": {
        "alpha_p": [NUMBER],
        "eta_p": [NUMBER],
        "config": {"digits": {"losses": [TEXT]}},
        **{
            f"{name}-{target}{optional}": MAP
            for name, optional in (("twin", ""), ("cosine", "?"), ("euclidean", "?"))
            for target in ("none", "average")
        },
    },
    "random_labels": {
        "dataset": TEXT,
        "parameters": WHOLE,
        "images": WHOLE,
        "rows": [
            {
                "labels": TEXT,
                "augmented": FLAG,
                "weight_decay": NUMBER,
                "train": SCORE,
                "test": SCORE,
                "train_curve": CURVE,
                "test_curve": CURVE,
                "loss_curve": CURVE,
            }
        ],
        "largest_class": NUMBER,
        "config": RUNS | {"encoder": {"name": TEXT}},
    },
    "ridge": {
        "dataset": TEXT,
        "l2": NUMBER,
        "newton_error": KNOWN,
        "closed_accuracy": NUMBER,
        "curvature": [NUMBER],
        "step": [WHOLE],
        "runs": [
            {
                "rate_in_units_of_1_over_L": NUMBER,
                "factor": NUMBER,
                "observed_factor": NUMBER,
                "gap": KNOWN,
                "error": CURVE,
                "predicted": CURVE,
                "test_accuracy": NUMBER,
            }
        ],
        "eigenvalues": [NUMBER],
    },
    "robustness": {
        "learning_rates": [NUMBER],
        "weight_decays": [NUMBER],
        "seeds": TEXT,
        "arms": {
            str: {
                "test": GRID,
                "test_curves": ARRAY,
                "loss_curves": ARRAY,
                "chosen": {"learning_rate": NUMBER, "weight_decay": NUMBER} | SCORE,
            }
        },
        "difference": GRID,
        "difference_over_grid": SCORE,
        "difference_at_own_best": SCORE,
        "opposing": {"ratio": ARRAY, "fraction": ARRAY},
        "layers": [TEXT],
    },
    "semi_supervised": {
        "dataset": TEXT,
        "images": WHOLE,
        "validation_images": WHOLE,
        "test_images": WHOLE,
        "rows": [
            {
                "share": NUMBER,
                "images": WHOLE,
                "arm": TEXT,
                "chosen": NUMBER,
                "at_the_edge": FLAG,
                "validation": SCORE,
                "test": SCORE,
                "ahead": SCORE,
            }
        ],
        "config": {
            "seeds": WHOLE,
            "pretraining": {"method": TEXT, "encoder": {"name": TEXT}},
        },
    },
    "signal": {
        "dataset": TEXT,
        "epochs_watched": [WHOLE],
        "members": [
            {
                "depth": WHOLE,
                "activation": TEXT,
                "init": TEXT,
                "train": SCORE,
                "test": SCORE,
                "log10_gradient": TABLE,
            }
        ],
        "config": RUNS,
    },
    "snapshots": {
        "dataset": TEXT,
        "kinds": {str: {"accuracy": SCORE, "nll": SCORE}},
        "ensemble_minus": {"its last member": SCORE, "plain run": SCORE},
        "ensemble_of_seeds": {"accuracy": NUMBER, "nll": NUMBER},
        "members": {"accuracy": SCORES},
        "last_members": SCORES,
        "disagreement": SCORE,
        "curves": {"cyclic": SCORES, "plain": SCORES},
        "config": RUNS | {"cycles": WHOLE},
    },
    "strong_penalty": {
        "weight_decay": NUMBER,
        "optimizers": {
            str: {
                "learning_rate": NUMBER,
                "arms": {
                    str: {
                        "test": SCORE,
                        "loss": SCORE,
                        "ahead_of_WD": SCORE,
                        "test_curve": SCORES,
                        "loss_curve": SCORES,
                    }
                },
            }
        },
    },
    "zero_shot": {
        "s": [WHOLE],
        "networks": {str: {"accuracy": SCORES, "loss": SCORES, "holds_until": SCORE}},
    },
}
