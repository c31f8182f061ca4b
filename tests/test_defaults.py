"""Every default and where it comes from: a paper, a published code, a library's documentation.

OWNERS finds the defaults by itself: the options of optimizers, schedules, predictors, augmentations
and probes, the numbers of the recipes, the fields of the configurations. TABLE holds each with its
source. What no source fixes has a row whose source begins with "own choice". So a default that is
changed fails here, and a new one needs a row.

Höppe: Höppe et al. 2022 (ReScience C) and its code, miszkur/SelfSupervisedLearning. Tian: Tian et
al. 2021 (arXiv 2102.06810) and its code, facebookresearch/luckmatters, ssl/real-dataset. LPWD: the
layer-wise pre-weight-decay paper.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import defaults, supervised
from ssl_jax import losses
from ssl_jax.augment import augmix, colour, geometry, labelled, views
from ssl_jax.data.sources import load_dataset
from ssl_jax.dynamics import theory_fit
from ssl_jax.models.batch_norm import BatchNorm
from ssl_jax.optim import decay, directions, fisher, optimizer, schedules, stopping
from ssl_jax.predictors import KINDS, direct
from ssl_jax.probes import accuracies, knn, label_free, linear
from ssl_jax.workdir.directory import flatten


def defaults_of(function: Callable) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


FUNCTIONS = [
    *(getattr(directions, name) for name in directions.DIRECTIONS if name != "adamw"),
    *(schedules.SCHEDULES[name] for name in schedules.SCHEDULES),
    directions.make_direction,
    directions.scale_by_sum_of_squares,
    fisher.scale_by_fisher,
    optimizer.make_optimizer,
    optimizer.clipped,
    decay.layer_rates,
    stopping.plateau_scale,
    stopping.should_stop,
    *KINDS.values(),
    direct.direct_pred,
    direct.direct_copy,
    direct.direct_set,
    direct.optimal,
    losses.variance_hinge,
    geometry.random_resized_crop,
    geometry.random_flip,
    geometry.random_gaussian_blur,
    colour.random_grayscale,
    colour.random_colour_jitter,
    colour.solarize,
    colour.random_solarize,
    views.measure,
    augmix.random_augmix,
    labelled.make_augment,
    linear.seed_probe,
    linear.original_probe,
    linear.few_label_probe,
    linear.ridge_probe,
    knn.knn_accuracy,
    accuracies.calibrate,
]
OWNERS: dict[str, dict[str, Any]] = {
    f"{f.__module__.removeprefix('ssl_jax.')}.{f.__name__}": defaults_of(f) for f in FUNCTIONS
}
OWNERS |= {f"recipe {name}": recipe._asdict() for name, recipe in views.RECIPES.items()}
OWNERS["augment.augmix"] = {"WIDTH": augmix.WIDTH, "DEPTH": augmix.DEPTH}
OWNERS["probes.label_free"] = {
    name: getattr(label_free, name)
    for name in ("EPSILON", "DELTA", "FIRST", "LAST", "VIEWS", "MOST")
}
OWNERS["dynamics.theory_fit"] = {"ALIGNED": theory_fit.ALIGNED}
OWNERS["BatchNorm"] = {
    field.name: field.default
    for field in dataclasses.fields(BatchNorm)
    if field.name in ("momentum", "epsilon")
}
# Without what belongs to the machine, the log or the data set.
TECHNICAL = (
    "task method seed devices precision steps_per_call log_every eval_every checkpoint_every "
    "tensorboard dynamics.every data.name data.data_dir data.train_size data.image_size "
    "data.resident "
    "data.labels data.fit data.background data.damaged data.test_share data.test_split "
    "sync_batch_norm weights weights_step snapshots data.random_labels data.labelled_share "
    "accumulate"
).split()


def published_fields(config) -> dict[str, Any]:
    fields = flatten(config.to_dict())
    return {name: value for name, value in fields.items() if name not in TECHNICAL}


OWNERS["configs.defaults"] = published_fields(defaults.get_config())
OWNERS["configs.supervised"] = {  # where it differs
    name: value
    for name, value in published_fields(supervised.get_config()).items()
    if OWNERS["configs.defaults"].get(name, "absent") != value
}


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
TORCH = "https://docs.pytorch.org/docs/stable/generated/torch.optim."
VISION = "https://docs.pytorch.org/vision/stable/generated/torchvision.transforms."
RATIO = (3 / 4, 4 / 3)
TIAN_VIEWS = f"Tian's data/transforms.py, with the defaults of {VISION}RandomResizedCrop.html"
HOPPE = "Höppe, section 4"
# owner, values, source
TABLE: list[tuple[str, dict[str, Any], str]] = [
    # --- Optimizers ---
    ("optim.directions.momentum", {"momentum": 0.9}, f"{HOPPE}; the optimizer guide"),
    ("optim.directions.make_direction", {"momentum": 0.9}, f"{HOPPE}; the optimizer guide"),
    ("optim.optimizer.make_optimizer", {"momentum": 0.9}, f"{HOPPE}; the optimizer guide"),
    ("optim.directions.nesterov", {"momentum": 0.9}, "Sutskever et al. 2013; the optimizer guide"),
    ("optim.directions.adagrad", {"eps": 1e-10}, f"{TORCH}Adagrad.html"),
    ("optim.directions.scale_by_sum_of_squares", {"eps": 1e-10}, f"{TORCH}Adagrad.html"),
    ("optim.directions.adadelta", {"rho": 0.9, "eps": 1e-6}, f"{TORCH}Adadelta.html"),
    ("optim.directions.rmsprop", {"rho": 0.9}, "Hinton 2012, lecture 6e; the optimizer guide"),
    ("optim.directions.rmsprop", {"eps": 1e-8}, f"{TORCH}RMSprop.html; the optimizer guide"),
    ("optim.directions.adam", ADAM, "Kingma & Ba 2015, algorithm 1"),
    ("optim.directions.adamax", ADAM, f"Kingma & Ba 2015, algorithm 2; {TORCH}Adamax.html (eps)"),
    ("optim.directions.nadam", ADAM, f"{TORCH}NAdam.html"),
    ("optim.directions.amsgrad", ADAM, f"{TORCH}Adam.html, of which it is the variant amsgrad"),
    ("optim.directions.radam", ADAM, f"{TORCH}RAdam.html"),
    ("optim.directions.lookahead", {"inner": "adam"}, "own choice: the paper runs it on Adam"),
    (
        "optim.directions.lookahead",
        {"period": 6, "slow": 0.5},
        "https://www.tensorflow.org/addons/api_docs/python/tfa/optimizers/Lookahead",
    ),
    ("optim.directions.lion", {"b1": 0.9, "b2": 0.99}, "Chen et al. 2023, section 4; optax.lion"),
    ("optim.directions.lars", {"trust": 1e-3}, "You et al. 2017, section 5; optax.lars"),
    ("optim.directions.lars", {"momentum": 0.9}, "Grill et al. 2020, section 3.3; optax.lars"),
    *(
        row
        for owner in ("optim.directions.natural", "optim.fisher.scale_by_fisher")
        for row in (
            (owner, {"rho": 0.95}, "Martens & Grosse 2015 (arXiv 1503.05671), section 5"),
            (owner, {"damping": 1e-3}, "KFACOptimizer of github.com/alecwangcq/KFAC-Pytorch"),
            (owner, {"block": 64}, "own choice: a norm of ResNet-18's first stage still has one"),
        )
    ),
    ("optim.optimizer.make_optimizer", {"decay_scale": "lr"}, f"{TORCH}AdamW.html"),
    ("optim.decay.layer_rates", {"rule": "mean"}, "LPWD, section 4, whose mean is the rate"),
    # --- Schedules, plateau, stopping ---
    ("optim.schedules.step", {"factor": 0.1}, f"{TORCH}lr_scheduler.StepLR.html (gamma)"),
    ("optim.schedules.polynomial", {"power": 2.0}, "Höppe's models/model.py"),
    *(
        (f"optim.schedules.{name}", {"low": 0.25}, "Smith 2017, section 3.3: 1/3 or 1/4 of the top")
        for name in ("triangular", "triangular2", "exp_range")
    ),
    ("optim.schedules.exp_range", {"gamma": 0.99994}, "Smith 2017, section 4.1"),
    (
        "optim.schedules.sgdr",
        {"growth": 1.0},
        f"{TORCH}lr_scheduler.CosineAnnealingWarmRestarts.html",
    ),
    (
        "optim.stopping.plateau_scale",
        {"threshold": 1e-4},
        f"{TORCH}lr_scheduler.ReduceLROnPlateau.html",
    ),
    *(
        (f"optim.stopping.{name}", {"better": "higher"}, "own choice: an accuracy is the metric")
        for name in ("plateau_scale", "should_stop")
    ),
    # --- Predictors, losses, networks ---
    *((f"predictors.predictor._{kind}", {"rho": 0.3}, f"{HOPPE}; Tian, Table 8") for kind in KINDS),
    *(
        (f"predictors.predictor._{kind}", {"init": "pytorch"}, "Tian's models/mlp_head.py")
        for kind in KINDS
    ),
    ("predictors.predictor._mlp", {"hidden": 512}, f"{HOPPE}; Tian, Appendix C"),
    *(
        (owner, {"eps": 0.1, "eps_mode": "relative", "floor": 1e-4}, source)
        for owner, source in (
            ("predictors.predictor._direct_pred", "Tian, Table 8, and byol_trainer.py; Höppe"),
            ("predictors.direct.direct_pred", "Tian, Table 8, and byol_trainer.py; Höppe"),
        )
    ),
    ("predictors.predictor._direct_pred", {"every": 1}, "Tian, Table 8"),
    ("predictors.predictor._direct_copy", {"every": 1}, "Höppe's experiments/config.py"),
    ("predictors.predictor._direct_copy", {"eps": 0.3}, "Höppe's experiments/config.py"),
    ("predictors.direct.direct_copy", {"eps": 0.3}, "Höppe's experiments/config.py"),
    *(
        (owner, {"power": 0.5, "eps": 0.1, "norm": "max"}, "DirectPred's: Tian, Table 8")
        for owner in ("predictors.predictor._direct_set", "predictors.direct.direct_set")
    ),
    *(
        (owner, {"ridge": 0.01}, "own choice: a hundredth of the mean eigenvalue; Tian gives none")
        for owner in ("predictors.predictor._optimal", "predictors.direct.optimal")
    ),
    *(
        (f"predictors.predictor._{kind}", {"every": 1}, "as DirectPred: Tian, Table 8")
        for kind in ("direct_set", "optimal")
    ),
    ("predictors.predictor._mlp", {"head_norm": "batch"}, f"{HOPPE}; Tian, Appendix C"),
    (
        "configs.defaults",
        {
            "projector.norm": "batch",
            "predictor.power": 0.5,
            "predictor.norm": "max",
            "predictor.ridge": 0.01,
        },
        "as of the predictors' own functions",
    ),
    ("losses.variance_hinge", {"gamma": 1.0, "eps": 1e-4}, "Bardes et al. 2022, section 4.1"),
    ("BatchNorm", {"momentum": 0.9, "epsilon": 1e-5}, f"{TORCH[:-6]}nn.BatchNorm2d.html"),
    # --- Views ---
    ("augment.geometry.random_resized_crop", {"scale": (0.08, 1.0), "ratio": RATIO}, TIAN_VIEWS),
    ("augment.geometry.random_flip", {"probability": 0.5}, f"{VISION}RandomHorizontalFlip.html"),
    ("augment.geometry.random_gaussian_blur", {"sigma": (0.1, 2.0)}, f"{VISION}GaussianBlur.html"),
    ("augment.geometry.random_gaussian_blur", {"probability": 1.0}, "Tian's data/transforms.py"),
    ("augment.colour.random_grayscale", {"probability": 0.2}, "Tian's data/transforms.py"),
    ("augment.colour.random_colour_jitter", {"probability": 0.8}, "Tian's data/transforms.py"),
    *(
        (f"recipe {name}", {"crop_ratio": RATIO, "jitter": 0.8, **values}, source)
        for name, values, source in (
            (
                "cifar",
                {"crop_scale": (0.08, 1.0), "flip": 0.5, "gray": 0.2}
                | {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
                | {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)},
                TIAN_VIEWS,
            ),
            (
                "stl10",
                {"crop_scale": (0.08, 1.0), "flip": 0.5, "gray": 0.2}
                | {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 1.0},
                TIAN_VIEWS,
            ),
            (
                "digits",
                {"crop_scale": (0.5, 1.0), "brightness": 0.4, "contrast": 0.4}
                | {"mean": (0.3053,), "std": (0.3761,)},
                "own choice, by configs/quickstart.py; mean and deviation of the training digits",
            ),
        )
    ),
    *(
        (f"recipe {name}", {"blur_kernel": 9, "blur_sigma": (0.1, 2.0)}, "Tian's gaussian_blur.py")
        for name in views.RECIPES
        if name != "photo"
    ),
    (
        "recipe photo",
        {"crop_scale": (0.08, 1.0), "crop_ratio": RATIO, "flip": 0.5, "jitter": 0.8, "gray": 0.2}
        | {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
        | {"blur": 1.0, "blur_second": 0.1, "blur_sigma": (0.1, 2.0)}
        | {"solarize": 0.0, "solarize_second": 0.2},
        "Grill et al. 2020 (arXiv 2006.07733), appendix B, table 6",
    ),
    (
        "recipe digits",
        {"crop_scale": (0.5, 1.0), "flip": 0.0, "saturation": 0.0, "hue": 0.0, "gray": 0.0},
        "own choice: a mirrored digit is another sign, and a small crop shows no digit",
    ),
    ("recipe photo", {"blur_kernel": 0}, "DeepMind's byol/utils/augmentations.py (blur_divider)"),
    ("augment.colour.solarize", {"threshold": 128}, "Grill et al. 2020, appendix B; Pillow's own"),
    ("augment.colour.random_solarize", {"probability": 0.2}, "Grill et al. 2020, table 6"),
    (
        "augment.views.measure",
        {"most": 10_000, "seed": 0},
        "own choice: the error of a mean is a hundredth of the images' deviation",
    ),
    # --- Measures ---
    ("probes.label_free", {"EPSILON": 1e-7}, "Garrido et al. 2023 (arXiv 2210.02885), equation 1"),
    (
        "probes.label_free",
        {"DELTA": 1e-4, "MOST": 1000},
        "Thilak et al. 2024 (arXiv 2312.04000)",
    ),
    (
        "probes.label_free",
        {"FIRST": 6, "LAST": 100},
        "Agrawal et al. 2022, the authors' library",
    ),
    ("probes.label_free", {"VIEWS": 2}, "own choice: docs/label_free.md has what it costs"),
    (
        "dynamics.theory_fit",
        {"ALIGNED": 0.95},
        "Höppe et al. 2022, the share of aligned modes",
    ),
    # --- Supervised augmentation ---
    ("augment.augmix", {"WIDTH": 3, "DEPTH": 3}, "google-research/augmix, cifar.py"),
    ("augment.augmix.random_augmix", {"severity": 3}, "google-research/augmix, cifar.py"),
    (
        "augment.labelled.make_augment",
        {"augmix_severity": 3, "consistency": 12.0},
        "google-research/augmix, cifar.py; Hendrycks et al. 2020, section 3",
    ),
    ("augment.labelled.make_augment", {"flip": 0.5}, "LPWD, section 4"),
    # --- Probes ---
    ("probes.linear.seed_probe", {"epochs": 100, "batch_size": 128}, f"{HOPPE}; its evaluation.py"),
    ("probes.linear.seed_probe", {"loss": "softmax"}, "Höppe's models/model.py"),
    (
        "probes.linear.original_probe",
        {"epochs": 50, "batch_size": 128},
        "Tian's linear_feature_eval.py",
    ),
    ("probes.linear.few_label_probe", {"inverse_penalty": 1.0}, "scikit-learn's C"),
    (
        "probes.linear.ridge_probe",
        {"penalties": tuple(10.0**power for power in range(-6, 2))},
        "own choice: of these the one with the least leave-one-out error is taken",
    ),
    (
        "probes.knn.knn_accuracy",
        {"k": 200, "temperature": 0.1},
        "facebookresearch/moco's demo on CIFAR-10 (knn-k, knn-t)",
    ),
    ("probes.accuracies.calibrate", {"batches": 50}, "own choice: 0.9^50 is 0.5 % of the start"),
    # --- Configurations ---
    (
        "configs.defaults",
        {
            "batch_size": 128,
            "epochs": 100,
            "loss": "cosine",
            "loss_scale": 1.0,
            "encoder.name": "resnet18",
            "encoder.stem": "cifar",
            "encoder.width": 64,
            "projector.hidden": 512,
            "projector.out": 128,
            "predictor.kind": "mlp",
            "predictor.hidden": 512,
            "predictor.eps": 0.1,
            "predictor.rho": 0.3,
            "predictor.every": 1,
            "target.tau": 0.996,
            "optimizer.name": "momentum",
            "optimizer.learning_rate": 0.03,
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 4e-4,
            "optimizer.decay": "coupled",
        },
        HOPPE,
    ),
    (
        "configs.defaults",
        {
            "init": "glorot",
            "predictor.eps_mode": "relative",
            "optimizer.exclude": r"linear\d*/bias",
            "probe.protocol": "seed",
            "probe.loss": "softmax",
            "views.recipe": "cifar",
        },
        "Höppe's code, where the text is silent",
    ),
    ("configs.defaults", {"optimizer.decay_scale": "lr"}, f"{TORCH}AdamW.html"),
    ("configs.defaults", {"encoder.residual": True}, "He et al. 2016 (arXiv 1512.03385)"),
    (
        "configs.defaults",
        {"probe.knn_k": 200, "probe.knn_temperature": 0.1},
        "facebookresearch/moco's demo on CIFAR-10 (knn-k, knn-t)",
    ),
    (
        "configs.defaults",
        {
            "probe.few_label_draws": 20,
            "probe.newton_steps": 8,
            "probe.validation_size": 2000,
            "probe.random_init": True,
            "probe.ridge": True,
        },
        "own choice",
    ),
    (
        "configs.supervised",
        {
            "batch_size": 512,
            "optimizer.name": "adam",
            "optimizer.learning_rate": 1e-4,
            "optimizer.weight_decay": 1e-2,
            "optimizer.decay": "decoupled",
            "augment.flip": 0.5,
            "augment.mean": [0.485, 0.456, 0.406],
            "augment.std": [0.229, 0.224, 0.225],
        },
        "LPWD, section 4",
    ),
    (
        "configs.supervised",
        {"augment.augmix_severity": 3, "augment.consistency": 12.0},
        "google-research/augmix, cifar.py; Hendrycks et al. 2020, section 3",
    ),
    (
        "configs.supervised",
        {"plateau.factor": 0.1, "plateau.threshold": 1e-4},
        f"{TORCH}lr_scheduler.ReduceLROnPlateau.html",
    ),
    (
        "configs.supervised",
        {"plateau.watch": "validation_loss", "stopping.watch": "validation_loss"},
        "Velasco-Forero's lecture (monitor='val_loss'); the optimizer guide (step(val_loss))",
    ),
    ("configs.supervised", {"init": "pytorch", "loss": "softmax"}, "LPWD, section 4 (timm)"),
    ("configs.supervised", {"data.validation_size": 5000}, "own choice: a tenth of CIFAR-10"),
]
# Nothing is done, or the default of what is below decides.
OFF = (0, False, "", None, "none", "auto", "constant", (0.0,), (1.0,))


@pytest.mark.parametrize("owner, values, source", TABLE)
def test_a_default_is_its_sources(owner, values, source):
    assert {name: OWNERS[owner][name] for name in values} == values, source


@pytest.mark.parametrize("owner", OWNERS)
def test_every_default_has_a_source(owner):
    known = {name for of, values, _ in TABLE if of == owner for name in values}
    assert [n for n, value in OWNERS[owner].items() if n not in known and value not in OFF] == []


# --- Libraries that are here to be asked ----------------------------------------------------------

ADAM_NAMES = {name: name for name in ADAM}
OPTAX = {  # ours: our option -> Optax's
    "adadelta": {"rho": "rho", "eps": "eps"},
    "rmsprop": {"rho": "decay", "eps": "eps"},
    "adam": ADAM_NAMES,
    "adamax": ADAM_NAMES,
    "nadam": ADAM_NAMES,
    "amsgrad": ADAM_NAMES,
    "radam": ADAM_NAMES,
    "lion": {"b1": "b1", "b2": "b2"},
    "lars": {"trust": "trust_coefficient", "eps": "eps", "momentum": "momentum"},
}


@pytest.mark.parametrize("name", OPTAX)
def test_defaults_are_those_of_optax(name):
    theirs, ours = defaults_of(getattr(optax, name)), directions.options_of(name)
    assert {option: theirs[other] for option, other in OPTAX[name].items()} == {
        option: ours[option] for option in OPTAX[name]
    }


PYTORCH = {  # ours: PyTorch's class, our option -> its own
    "momentum": ("SGD", {"dampening": "dampening"}),
    "adagrad": ("Adagrad", {"eps": "eps", "initial": "initial_accumulator_value"}),
    "adadelta": ("Adadelta", {"rho": "rho", "eps": "eps"}),
    "rmsprop": ("RMSprop", {"eps": "eps"}),
    "adam": ("Adam", {"eps": "eps"}),
    "adamax": ("Adamax", {"eps": "eps"}),
    "nadam": ("NAdam", {"eps": "eps"}),
    "radam": ("RAdam", {"eps": "eps"}),
}


@pytest.mark.parametrize("name", PYTORCH)
def test_defaults_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    other, names = PYTORCH[name]
    theirs, ours = defaults_of(getattr(torch.optim, other)), directions.options_of(name)
    assert {option: theirs[their] for option, their in names.items()} == {
        option: ours[option] for option in names
    }
    if "b1" in ours:
        assert (ours["b1"], ours["b2"]) == theirs["betas"]


def test_the_statistics_of_the_digits_are_theirs():
    image = load_dataset("digits").train.image / 255
    recipe = views.RECIPES["digits"]
    assert (recipe.mean[0], recipe.std[0]) == pytest.approx((image.mean(), image.std()), rel=1e-3)


# --- Defaults that act only where nobody looks ----------------------------------------------------


def test_the_floor_holds_where_an_eigenvalue_is_zero():
    """1e-4, the lower clip of both published codes: p_j = max(sqrt(s_j / m) + eps, 1e-4)."""
    w = direct.direct_pred(np.diag(np.float32([0.0, 0.0, 2.0])), eps=0.0)
    np.testing.assert_allclose(np.linalg.eigvalsh(w), [1e-4, 1e-4, 1.0], rtol=1e-5)


def test_the_block_of_natural_gradient_ends_above_64_entries():
    for natural in (directions.natural(), fisher.scale_by_fisher()):
        state = natural.init({"norm": jnp.zeros(64), "next": jnp.zeros(65)})
        assert sorted(part.shape for part in jax.tree.leaves(state)) == [(), (64, 64), (65,)]


@pytest.mark.parametrize("protocol, epochs", [("seed", 100), ("original", 50)])
@pytest.mark.parametrize("asked", [0, 3])
def test_the_probe_trains_as_long_as_asked_or_as_its_protocol(monkeypatch, protocol, epochs, asked):
    """`probe.epochs`; 0 is the protocol's own number."""
    name, seen = f"{protocol}_probe", []

    def probe(*data, **options):
        found = getattr(linear, name)(*data, **options)
        seen.append(len(found.accuracy))
        return found

    monkeypatch.setattr(accuracies, name, probe)
    x, y = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32), np.arange(12) % 2
    settings = defaults.get_config().probe.to_dict() | {"protocol": protocol, "epochs": asked}
    settings |= {"knn_k": 3, "seed": 0, "ridge": False}
    taken = inspect.signature(accuracies.probe_accuracies).parameters
    accuracies.probe_accuracies(
        {"train_x": x, "train_y": y, "test_x": x, "test_y": y},
        2,
        **{name: value for name, value in settings.items() if name in taken},
    )
    assert seen == [asked or epochs]
