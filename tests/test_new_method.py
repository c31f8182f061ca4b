"""A predictor, an objective and a method that are not in the program: the shared suites and a run
take them by name.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from suites import check_method, check_objective_of_name, check_predictor, check_step
from test_end_to_end import ROOT, command, result_of
from tiny import make_parts, make_step

from configs import cifar10, cifar10_small, methods, stl10
from ssl_jax import losses, predictors
from ssl_jax.builders import pretraining
from ssl_jax.losses import Objective, both_directions, negative_cosine
from ssl_jax.predictors import Predictor, in_closed_form
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.dynamics_npz import read_dynamics

# --- What is added --------------------------------------------------------------------------------


def diagonal(
    dim: int, *, eps: float = 0.1, every: int = 1, init: str = "pytorch", rho: float = 0.3
) -> Predictor:
    """DirectPred without its eigenvectors: p_j = sqrt(F_jj / max F_jj) + eps for coordinate j."""

    def write(corr):
        size = jnp.diagonal(corr)
        top = jnp.max(size)
        return jnp.diag(jnp.sqrt(size / jnp.where(top > 0, top, 1)) + eps)

    return in_closed_form(dim, write, every=every, init=init, rho=rho)


def centred(p, z, t, memory, mean):
    """-cos of predictions and targets less their means over the whole batch."""

    def less_its_mean(pair):
        return tuple(one - mean(jnp.mean(one, axis=0, keepdims=True)) for one in pair)

    return both_directions(negative_cosine)(less_its_mean(p), z, less_its_mean(t), memory, mean)


METHOD = {
    "predictor.kind": "diagonal",
    "loss": "centred",
    "predictor.eps": 0.2,
    "regularisers.variance": 0.5,
}


@pytest.fixture
def added(monkeypatch):
    """One line in each table."""
    monkeypatch.setitem(predictors.KINDS, "diagonal", diagonal)
    monkeypatch.setitem(losses.OBJECTIVES, "centred", Objective(centred, sees_scale=False))
    monkeypatch.setitem(methods.METHODS, "new", METHOD)


# --- The shared suites ----------------------------------------------------------------------------


def test_predictor(added):
    check_predictor("diagonal")


def test_objective(added):
    check_objective_of_name("centred")


@pytest.mark.parametrize("module", [cifar10, cifar10_small, stl10])
def test_method(added, module):
    check_method(module.get_config("new"), "new")


@pytest.mark.parametrize("tau", [None, 0.9])
def test_step(added, tau):
    parts = make_parts("diagonal", tau=tau)
    check_step(parts, jax.jit(make_step(parts, objective=losses.OBJECTIVES["centred"])))


# --- The suites can fail --------------------------------------------------------------------------


def learned(dim, **options):
    return diagonal(dim, **options)._replace(update=predictors.make_predictor("linear", dim).update)


WRONG_PREDICTORS = {
    "closed_form is True": learned,
    "closed_form is False": lambda dim, **options: diagonal(dim, **options)._replace(
        closed_form=False
    ),
    "linear is False": lambda dim, **options: diagonal(dim, **options)._replace(linear=False),
    "linear is True": lambda dim, **options: diagonal(dim, **options)._replace(
        apply=lambda params, memory, z: z**2
    ),
}


@pytest.mark.parametrize("words", WRONG_PREDICTORS)
def test_a_wrong_predictor_is_found(added, monkeypatch, words):
    monkeypatch.setitem(predictors.KINDS, "diagonal", WRONG_PREDICTORS[words])
    with pytest.raises(AssertionError, match=words):
        check_predictor("diagonal")


def of_one_device(p, z, t, memory, mean):
    return centred(p, z, t, memory, lambda tree: tree)


WRONG_OBJECTIVES = {
    "sees_scale is True": Objective(centred, sees_scale=True),
    "Not equal": Objective(of_one_device, sees_scale=False),
    "nothing to learn": Objective(
        lambda p, z, t, memory, mean: (jnp.sum(t[0]), {"t": jnp.sum(t[0])}), False
    ),
}


@pytest.mark.parametrize("words", WRONG_OBJECTIVES)
def test_a_wrong_objective_is_found(added, monkeypatch, words):
    monkeypatch.setitem(losses.OBJECTIVES, "centred", WRONG_OBJECTIVES[words])
    with pytest.raises(AssertionError, match=words):
        check_objective_of_name("centred")


def test_a_wrong_method_is_found(added, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "new", METHOD | {"predictor.symmetric": True})
    with pytest.raises(ValueError, match="predictor.symmetric: got True"):
        check_method(cifar10_small.get_config("new"), "new")


# --- From a configuration to a result -------------------------------------------------------------


def test_an_option_gets_its_field(added, monkeypatch):
    """By its name in the function's signature; what the function does not take is left out."""
    config = cifar10_small.get_config("new")
    seen = []

    def spy(dim, *, eps=0.1, hidden=3, output_bias=True, init="glorot", nowhere=7, rho=0.3):
        seen.append((dim, eps, hidden, output_bias, init, nowhere, rho))
        return diagonal(dim, eps=eps, rho=rho)

    monkeypatch.setitem(predictors.KINDS, "diagonal", spy)
    pretraining.build_predictor(config, None)
    assert seen == [(64, 0.2, 256, False, "pytorch", 7, 0.3)]
    with config.unlocked():
        config.predictor.nowhere = 8
        del config.predictor.hidden
        config.predictor.rho = None  # unset
    pretraining.build_predictor(config, None)
    assert seen[1] == (64, 0.2, 3, False, "pytorch", 8, 0.3)


FIELDS = """
    data.name=digits views.recipe=digits views.jitter=0 data.train_size=96 batch_size=32 epochs=2
    eval_every=1 checkpoint_every=1 log_every=2 dynamics.every=2 encoder.name=convnet_digits
    encoder.width=4 projector.hidden=8 projector.out=4 schedule.name=constant devices=2
    probe.epochs=2 probe.knn_k=5 probe.validation_size=32 probe.random_init=false
""".split()


@pytest.mark.slow
def test_run(added, tmp_path, monkeypatch):
    """Trained on two devices, recorded, stopped and gone on, probed, diagnosed and drawn."""
    monkeypatch.chdir(ROOT)
    run, config = tmp_path / "run", "cifar10_small:new"
    assert command(config, run, *FIELDS) == 0
    result, rows = result_of(run), metrics_csv.read_rows(run / "metrics.csv")
    assert result["method"] == "new" and 0 <= result["knn_accuracy"] <= 1
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    for row in rows:  # as many digits as the file has
        whole = row["loss_prediction"] + 0.5 * row["loss_variance"]
        np.testing.assert_allclose(row["loss"], whole, rtol=1e-4)
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert header == ",".join([*metrics_csv.COLUMNS, "loss_prediction", "loss_variance"])
    assert {"loss_prediction", "loss_variance"} <= set(read_dynamics(run))
    # One epoch more: the constant schedule lets the run go on.
    assert command(config, run, *FIELDS, "epochs=3") == 0
    later = metrics_csv.read_rows(run / "metrics.csv")
    assert [row["loss_variance"] for row in later[:4]] == [row["loss_variance"] for row in rows]
    assert later[-1]["step"] == 9 and np.isfinite(later[-1]["loss_variance"])
    assert (
        command("probe", tmp_path / "probe", f"checkpoint={run}", "probe.epochs=1", "probe.knn_k=5")
        == 0
    )
    assert command("doctor", tmp_path / "doctor", f"run={run}") == 0
    assert command("dynamics", tmp_path / "dynamics", f"runs={run}") == 0
    assert "diagonal writes W_p down" in (tmp_path / "dynamics" / "overlay.md").read_text()
