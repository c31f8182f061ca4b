"""The lectures' experiments: each from its command to its files, one number of each held against
another program's.
"""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss

from ssl_jax import intervals
from ssl_jax.builders.data import read_dataset
from ssl_jax.data.batches import batch_indices
from ssl_jax.errors import UserError
from ssl_jax.experiments import adam_l2, random_labels, ridge, signal, snapshots
from ssl_jax.experiments.harness import cells, stacked
from ssl_jax.experiments.registry import run_experiment
from ssl_jax.models import make_classifier, make_encoder
from ssl_jax.optim import make_optimizer
from ssl_jax.reports.experiments import registry
from ssl_jax.train import supervised
from ssl_jax.train.state import init_key

CONFIGS = Path(__file__).parent.parent / "configs" / "experiments"
# A few steps of networks with a handful of units.
TINY = {
    "signal": {
        "depths": (2,),
        "activations": ("tanh",),
        "inits": ("gaussian", "orthogonal"),
        "width": 4,
        "seeds": 2,
    },
    "adam_l2": {
        "width": 8,
        "depth": 1,
        "seeds": 2,
        "weight_decays": (0.0, 1e-3),
        "measured_decay": 1e-3,
    },
    "optimizers": {
        "optimizers": ("sgd", "natural"),
        "rates": (1e-2, 1e-1),
        "widths": (6, 4),
        "eps": (1e-4,),
    },
    "random_labels": {"seeds": 2, "encoder.width": 8},
    "snapshots": {"cycles": 2, "width": 8, "depth": 1, "seeds": 2},
    "ridge": {"steps": 50},
}


def tiny(name: str, **fields):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.data.train_size = 100
    fields = TINY[name] | ({} if name == "ridge" else {"epochs": 2, "batch_size": 20}) | fields
    if "validation_size" in config.data:
        config.data.validation_size = 20
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("name", TINY)
@pytest.mark.slow
def test_from_command_to_files(name, tmp_path, capsys, monkeypatch):
    config = tiny(name)
    run_experiment(config, str(tmp_path), lambda: False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "provenance.json",
        "cells",
        "result.json",
        "table.md",
        "figures",
    }
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["task"], result["experiment"], result["dataset"]) == (
        "experiment",
        name,
        "digits",
    )
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert list((tmp_path / "figures").glob("*.png")) and not list(
        (tmp_path / "cells").glob("*.tmp*")
    )
    # From the file alone the same text comes, and a second start computes nothing.
    assert registry.report(result) == (tmp_path / "table.md").read_text()
    monkeypatch.setattr(cells, "write_cell", None)
    run_experiment(config, str(tmp_path), lambda: False)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again == result


def test_stops_between_cells_and_goes_on(tmp_path, capsys):
    config, asked = tiny("snapshots"), iter([False, True])
    run_experiment(config, str(tmp_path), lambda: next(asked))
    assert "stopped after 1 of 2 parts" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["cyclic.npz"]
    before = (tmp_path / "cells" / "cyclic.npz").stat().st_mtime_ns
    run_experiment(config, str(tmp_path), lambda: False)
    assert (tmp_path / "result.json").exists()
    assert (tmp_path / "cells" / "cyclic.npz").stat().st_mtime_ns == before


def setting(config, dataset, network, **fields):
    augment, normalise = stacked.plain(dataset.side)
    eval_splits = {"train": dataset.train}
    sizes = config.epochs, config.batch_size, augment, normalise
    return stacked.Setting(
        network, dataset.num_classes, dataset.train, eval_splits, *sizes, **fields
    )


@pytest.mark.parametrize("loops", [True, False])
def test_members_are_those_of_a_loop_in_numpy(loops):
    """Softmax regression (an encoder that only flattens) by momentum, in float64, for two rates and
    two seeds.
    """
    config = tiny("signal", epochs=2)
    dataset = read_dataset(config)
    network = make_classifier(make_encoder("mlp", width=5, activation="tanh", depth=1), 10)
    seen = stacked.train_table(
        setting(config, dataset, network, loops=loops),
        lambda learning_rate: make_optimizer("momentum", learning_rate),
        {"learning_rate": [0.1, 0.5]},
        [3, 4],
    )
    x = dataset.train.image.reshape(100, -1).astype(np.float64) / 255
    target = np.eye(10)[dataset.train.label]
    for s, seed in enumerate((3, 4)):
        key = init_key(jax.random.key(seed))
        params, _ = network.init(key, jnp.zeros((2, 8, 8, 1)))
        for r, rate in enumerate((0.1, 0.5)):
            loss, accuracy = momentum(params, x, target, rate, seed)
            np.testing.assert_allclose(seen["loss"][s, r], loss, rtol=1e-4)
            np.testing.assert_allclose(seen["train_accuracy"][s, r], accuracy, atol=1e-6)


def momentum(params, x, target, rate: float, seed: int):
    """Mean loss and accuracy by epoch of a network of one hidden layer of tanh."""
    parts = [params["encoder"]["linear1"], params["head"]]
    theta = [np.asarray(part[k], np.float64) for part in parts for k in ("kernel", "bias")]
    ball, losses, accuracies = [np.zeros_like(p) for p in theta], [], []

    def forward(x):
        hidden = np.tanh(x @ theta[0] + theta[1])
        scores = hidden @ theta[2] + theta[3]
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, powers / powers.sum(axis=1, keepdims=True)

    for epoch in range(2):
        loss = []
        for step in range(5):
            index = batch_indices(seed, epoch * 5 + step, 100, 20)
            hidden, p = forward(x[index])
            loss.append(log_loss(target[index].argmax(1), p, labels=range(10)))
            by_scores = (p - target[index]) / 20
            by_hidden = by_scores @ theta[2].T * (1 - hidden**2)
            grads = [
                x[index].T @ by_hidden,
                by_hidden.sum(0),
                hidden.T @ by_scores,
                by_scores.sum(0),
            ]
            ball = [0.9 * m + g for m, g in zip(ball, grads, strict=True)]
            theta[:] = [t - rate * m for t, m in zip(theta, ball, strict=True)]
        losses.append(np.mean(loss))
        accuracies.append(np.mean(forward(x)[1].argmax(1) == target.argmax(1)))
    return losses, accuracies


def test_signal_gradient_norms():
    """Against finite differences of scikit-learn's loss, along the gradient's own direction being
    its norm.
    """
    config = tiny("signal")
    dataset = read_dataset(config)
    network = signal.classifier(config, dataset, 2, "tanh", "glorot")
    params, _ = network.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
    image, label = (
        jnp.asarray(dataset.train.image[:30] / 255.0, jnp.float32),
        dataset.train.label[:30],
    )
    state = supervised.SupervisedState(jnp.zeros((), jnp.int32), params, {}, ())
    norms = jax.jit(
        lambda state: signal.gradient_norms(network, 2, image, jnp.asarray(label), 10, state)
    )
    found = norms(state)["gradient"]
    kernels = [np.asarray(params["encoder"][f"linear{i}"]["kernel"], np.float64) for i in (1, 2)]
    kernels.append(np.asarray(params["head"]["kernel"], np.float64))
    x = np.asarray(image, np.float64).reshape(30, -1)

    def loss():
        scores = np.tanh(np.tanh(x @ kernels[0]) @ kernels[1]) @ kernels[2]
        powers = np.exp(scores)
        return log_loss(label, powers / powers.sum(axis=1, keepdims=True), labels=range(10))

    for i, kernel in enumerate(kernels):
        slopes = np.zeros_like(kernel)
        for place in np.ndindex(kernel.shape):
            for sign in (1, -1):
                kernel[place] += sign * 1e-5
                slopes[place] += sign * loss() / 2e-5
                kernel[place] -= sign * 1e-5
        assert found[i] == pytest.approx(np.linalg.norm(slopes), rel=1e-4)


def test_signal_sees_norms_whose_squares_are_nothing():
    small = {"encoder": {"linear1": {"kernel": jnp.full((64, 4), 1e-13), "bias": jnp.zeros(4)}}}
    small["head"] = {"kernel": jnp.full((4, 10), 1e-13), "bias": jnp.zeros(10)}
    network = make_classifier(make_encoder("mlp", width=4, depth=1), 10)
    state = supervised.SupervisedState(jnp.zeros((), jnp.int32), small, {}, ())
    image, label = jnp.full((3, 8, 8, 1), 1e-10), jnp.array([0, 1, 2])
    norm = signal.gradient_norms(network, 1, image, label, 10, state)["gradient"]
    assert 1e-25 < norm[1] < 1e-20  # of a gradient whose entries are 1e-23 at most
    nothing = signal.gradient_norms(network, 1, jnp.zeros_like(image), label, 10, state)["gradient"]
    assert nothing.tolist() == [0, 0]  # and no NaN


def test_decay_takes_what_the_equations_say():
    """SGD and AdamW: eta lambda of each weight. Adam with L2, on its first step: a step is eta
    sign(g + lambda theta), with and without the decay, so that it takes 0 of a weight with a
    gradient and eta of one without.
    """
    params = {"a": jnp.array([[0.5, -2.0]]), "b": jnp.array([[1.0, -0.25]])}
    grads = {"a": jnp.array([[0.3, 0.7]]), "b": jnp.zeros((1, 2))}

    def taken(name, decay):
        pair = (
            make_optimizer(name, 0.1, weight_decay=0.01, decay=decay),
            make_optimizer(name, 0.1),
        )
        optimizer = adam_l2.measure_shrinkage(*pair)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        weight = 1 - adam_l2.EMA_DECAY
        return {k: np.asarray(state.taken[k] / state.square[k]) for k in params}, state.power[
            "a"
        ] / weight

    for name, decay in (("sgd", "coupled"), ("sgd", "decoupled"), ("adam", "decoupled")):
        shares, power = taken(name, decay)
        np.testing.assert_allclose(np.concatenate([shares["a"], shares["b"]]), 0.001, rtol=1e-3)
        np.testing.assert_allclose(power, np.array([[0.09, 0.49]]), rtol=1e-5)
    shares, _ = taken("adam", "coupled")
    np.testing.assert_allclose(shares["a"], 0, atol=1e-5)
    np.testing.assert_allclose(shares["b"], 0.1 / np.abs(np.asarray(params["b"])), rtol=1e-4)


def test_random_labels_are_fitted():
    """A network with room for it learns 60 labels that mean nothing, and its weights are those of
    one that does.
    """
    config = tiny(
        "random_labels",
        epochs=80,
        learning_rate=0.02,
        **{"encoder.width": 64, "data.train_size": 60},
    )
    dataset = read_dataset(config)
    cell = random_labels.plan(config, dataset)["random-plain"].make(lambda steps: None)
    assert (
        cell["train_accuracy"][:, 0, -1].min() == 1 and cell["train_accuracy"][:, 0, 0].max() < 0.6
    )
    assert cell["test_accuracy"][:, 0, -1].max() < 0.3
    assert random_labels.parameters(config, dataset) == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10


def test_ensemble_scores_are_scikit_learns():
    p, label = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 50)), np.arange(50) % 4
    scores = snapshots.evaluate(p, label)
    assert scores["nll"].shape == (2, 3)
    assert scores["nll"][1, 2] == pytest.approx(log_loss(label, p[1, 2]))
    named = p.argmax(-1)
    assert scores["accuracy"][1, 2] == np.mean(named[1, 2] == label)
    pairs = [np.mean(named[0, i] != named[0, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert snapshots.disagreement(p)[0] == pytest.approx(np.mean(pairs))


def test_ridge_is_scikit_learns_and_descends_as_predicted():
    dataset = read_dataset(tiny("ridge"))
    problem, _ = ridge.make_problem(dataset.train, dataset.test, 10)
    model = Ridge(alpha=problem.l2 * 100).fit(problem.train_x, problem.target)
    np.testing.assert_allclose(problem.closed, np.asarray(model.coef_).T, rtol=1e-6, atol=1e-10)
    assert ridge.newton_error(problem) < 1e-8
    curvature, _ = ridge.curvatures(problem)
    rate, steps = 1.9 / curvature.max(), np.array([0, 1, 5, 40])
    test = dataset.test.image.reshape(500, -1) / 255, dataset.test.label
    seen = ridge.gradient_descent(problem, rate, steps, test, lambda steps: None)
    np.testing.assert_allclose(
        seen["error"], ridge.predicted_error(problem, rate, steps), rtol=1e-8
    )
    assert seen["error"][0] == 1 and seen["error"][-1] < 0.5


def test_interval_is_students():
    from scipy import stats

    values = np.random.default_rng(0).normal(size=(4, 3))
    found = intervals.mean_and_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(found["mean"], values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["interval"], (high - low) / 2, rtol=1e-4)
    assert intervals.mean_and_interval(values[:1])["interval"] is None
    assert intervals.rounded(np.array([1.234567, np.nan])) == [1.2346, None]


WRONG = {
    "snapshots": ({"cycles": 3}, "cycles: got 3, takes a number that divides the 2 epochs"),
    "snapshots alone": ({"cycles": 1}, "cycles: got 1, takes a number from 2 to 1000"),
    "random_labels without decay": (
        {"weight_decay": 0.0},
        "weight_decay: got 0.0, takes a number from 1e-12",
    ),
    "optimizers": ({"optimizers": ("sdg",)}, "optimizers: got 'sdg', did you mean 'sgd'"),
    "ridge": ({"rates": (0.0,)}, r"rates: got \(0.0,\), takes numbers above 0"),
    "adam_l2": ({"measured_decay": 0.5}, "measured_decay: got 0.5, takes one of weight_decays"),
    "signal": ({"inits": ("gaussain",)}, "init: got 'gaussain', did you mean 'gaussian'"),
    "random_labels": (
        {"batch_size": 101},
        "batch_size: got 101, takes 1 to the 100 training images",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_before_anything_is_written(name, tmp_path):
    fields, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        run_experiment(tiny(name.split()[0], **fields), str(tmp_path / "run"), lambda: False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_cell_and_a_number_out_of_range(tmp_path):
    with pytest.raises(UserError, match="seeds: got 0, takes a number from 1"):
        run_experiment(tiny("snapshots", seeds=0), str(tmp_path), lambda: False)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "ridge.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="ridge.npz: damaged .* delete it"):
        run_experiment(tiny("ridge"), str(tmp_path), lambda: False)
