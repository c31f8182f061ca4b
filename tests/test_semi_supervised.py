"""The semi-supervised table: what is chosen, by what, on which images; from command to files."""

import json
import runpy
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl_jax.builders import pretraining
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.network import build_encoder
from ssl_jax.data.splits import hold_out, keep_labelled
from ssl_jax.errors import UserError
from ssl_jax.experiments import semi_supervised as experiment
from ssl_jax.experiments.registry import run_experiment
from ssl_jax.reports.experiments.semi_supervised import conclude_semi_supervised

CONFIG = Path(__file__).parent.parent / "configs" / "experiments" / "semi_supervised.py"
TINY = {
    "seeds": 1,
    "shares": (0.25, 1.0),
    "rates": (1e-12, 0.1),
    "penalties": (0.1, 1.0),
    "steps": 2,
    "batch_size": 16,
    "data.train_size": 120,
    "data.validation_size": 20,
    "pretraining.epochs": 1,
    "pretraining.batch_size": 50,
    "pretraining.encoder.width": 4,
    "pretraining.projector.hidden": 8,
    "pretraining.projector.out": 6,
    "pretraining.predictor.hidden": 8,
}


def tiny(**fields):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.update_from_flattened_dict(TINY | fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("semi"), tiny()
    run_experiment(config, str(folder), lambda: False)
    return folder, config


def cell(folder, name):
    with np.load(folder / "cells" / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_from_command_to_files(finished):
    folder, _ = finished
    result = json.loads((folder / "result.json").read_text())
    assert (result["experiment"], result["images"], result["test_images"]) == (
        "semi_supervised",
        100,
        500,
    )
    found = [(row["share"], row["images"], row["arm"]) for row in result["rows"]]
    shares = [(0.25, 25), (1.0, 100)]
    assert sorted(found) == sorted((*share, arm) for share in shares for arm in experiment.ARMS)
    assert len((folder / "table.md").read_text().split("| from scratch |")) == 3
    assert (folder / "figures" / "semi_supervised.png").exists()


def parts(config, seed):
    """The images with labels of the first share, the test images, and the encoder's features."""
    dataset = read_dataset(config)
    train, _ = hold_out(dataset, config.data.validation_size)
    whole = experiment.pretraining_of(config, seed)
    encoder, recipe = build_encoder(whole, None), pretraining.build_recipe(whole)
    labelled = keep_labelled(train, config.shares[0], seed)
    return dataset, labelled, encoder, recipe


def test_the_linear_arm_is_a_logistic_regression_of_the_frozen_features(finished):
    (folder, config), seed = finished, 0
    dataset, labelled, encoder, recipe = parts(config, seed)
    params, stats = experiment.encoder_in(cell(folder, f"pretrained-{seed}"))
    features = Partial(experiment.make_features(encoder, recipe), params, stats)
    x, other = (np.asarray(features(split.image)) for split in (labelled, dataset.test))
    expected = []
    for l2 in config.penalties:
        classifier = LogisticRegression(C=1 / (l2 * 25), max_iter=1000)
        expected.append(
            make_pipeline(StandardScaler(), classifier)
            .fit(x, labelled.label)
            .score(other, dataset.test.label)
        )
    np.testing.assert_allclose(cell(folder, f"linear-0.25-{seed}")["test_accuracy"], expected)


def test_fine_tuning_begins_with_the_encoder_and_scratch_with_the_seed(finished):
    """Both have the same head, and the images of the linear arm."""
    folder, config = finished
    dataset, labelled, encoder, recipe = parts(config, 0)
    trainer = experiment.make_trainer(config, dataset, encoder, recipe)
    begun = []

    def begin(params, stats):
        begun.append((params, stats))
        return trainer.begin(params, stats)

    recorded = trainer._replace(begin=begin)
    pretrained = experiment.encoder_in(cell(folder, "pretrained-0"))
    splits = {"test": dataset.test}
    for given in (pretrained, None):
        experiment._train(config, recorded, labelled, splits, given, 0, lambda steps: None)
    fresh, _ = trainer.init(experiment.init_key(jax.random.key(0)))
    tuned, scratch = begun[0], begun[len(config.rates)]
    chex.assert_trees_all_equal(
        tuned, ({**fresh, "encoder": pretrained[0]}, {"encoder": pretrained[1]})
    )
    chex.assert_trees_all_equal(scratch[0], fresh)
    assert not np.array_equal(*(p["encoder"]["conv1"]["kernel"] for p, _ in (tuned, scratch)))


# --- What is chosen -------------------------------------------------------------------------------


def constructed(validation, test):
    return {
        "validation_accuracy": np.array(validation, float),
        "test_accuracy": np.array(test, float),
        "seconds": np.array(0.0),
    }


def test_what_is_chosen_is_chosen_by_held_out_images_over_all_seeds():
    """The second rate is best by validation over the seeds, the third by the test, the first for
    one seed.
    """
    config = tiny(
        **{"seeds": 2, "rates": (0.1, 0.2, 0.3), "penalties": (1.0, 2.0, 3.0), "shares": (1.0,)}
    )
    tuned = [
        constructed([0.9, 0.8, 0.1], [0.3, 0.5, 0.9]),
        constructed([0.1, 0.8, 0.2], [0.3, 0.7, 0.9]),
    ]
    scratch = [
        constructed([0.9, 0.1, 0.1], [0.4, 0.9, 0.9]),
        constructed([0.9, 0.1, 0.1], [0.5, 0.9, 0.9]),
    ]
    cells = {
        experiment.name_of(arm, 1.0, seed): found[seed]
        for arm, found in (("linear", tuned), ("fine-tuned", tuned), ("from scratch", scratch))
        for seed in (0, 1)
    }
    encoders = {f"pretrained-{seed}": {"loss": np.array([1.0, -1.0])} for seed in (0, 1)}
    result = experiment.summarise(config, read_dataset(config), encoders, cells)
    rows = {row["arm"]: row for row in result["rows"]}
    assert (rows["fine-tuned"]["chosen"], rows["fine-tuned"]["at_the_edge"]) == (0.2, False)
    assert (rows["from scratch"]["chosen"], rows["from scratch"]["at_the_edge"]) == (0.1, True)
    assert rows["linear"]["chosen"] == 2.0
    assert rows["fine-tuned"]["test"]["mean"] == pytest.approx(0.6)
    # paired by seed: 0.1 and 0.2; Student's t of one degree of freedom is 12.706
    ahead = rows["fine-tuned"]["ahead"]
    assert ahead["mean"] == pytest.approx(0.15)
    assert ahead["interval"] == pytest.approx(
        12.706 * np.std([0.1, 0.2], ddof=1) / 2**0.5, rel=1e-4
    )


def test_the_conclusion_says_what_cannot_be_told():
    def row(share, arm, mean, interval):
        return {"share": share, "arm": arm, "ahead": {"mean": mean, "interval": interval}}

    rows = [
        row(0.01, "linear", 0.2, 0.1),
        row(0.01, "fine-tuned", -0.01, 0.02),
        row(1.0, "linear", None, None),
        row(1.0, "fine-tuned", 0.05, None),
    ]
    rows += [row(share, "from scratch", 0.0, 0.0) for share in (0.01, 1.0)]
    assert conclude_semi_supervised({"rows": rows}) == (
        "Ahead of the same network from scratch, with 1 % of the labels: linear +20.0 ± 10.0 "
        "points, fine-tuned -1.0 ± 2.0 points, an interval that holds zero. With 100 % of the "
        "labels: linear not finite, fine-tuned +5.0 points."
    )


@pytest.mark.parametrize(
    "field, value, line",
    [
        ("shares", (0.01,), r"shares: got 0.01, 1 of 100 training images, .*"),
        ("shares", (1.5,), r"shares: got \(1.5,\), takes numbers above 0, at most 1"),
        ("rates", (0.0,), r"rates: got \(0.0,\), takes numbers above 0, at most 1e\+06"),
        ("optimizer", "momentun", "optimizer.name: got 'momentun', did you mean 'momentum'.*"),
        ("pretraining.loss", "cosin", "loss: got 'cosin', did you mean 'cosine'.*"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(field, value, line, tmp_path):
    with pytest.raises(UserError, match=f"^{line}$"):
        run_experiment(tiny(**{field: value}), str(tmp_path / "new"), lambda: False)
    assert not (tmp_path / "new").exists()
