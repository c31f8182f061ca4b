"""The experiments on weight decay on a few digits: what they conclude, what they keep, and what
they refuse.
"""

import json
import re
import runpy
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convnext import draw_file

from ssl_jax import intervals
from ssl_jax.data.dataset import Split
from ssl_jax.errors import UserError
from ssl_jax.experiments import ablation, model_scale, robustness, strong_penalty, zero_shot
from ssl_jax.experiments.harness import decay_grid
from ssl_jax.experiments.harness.cells import read_cell
from ssl_jax.experiments.harness.dispatched import Member, make_program, stack
from ssl_jax.experiments.registry import run_experiment
from ssl_jax.reports.experiments import parts
from ssl_jax.reports.experiments import registry as reports

ROOT = Path(__file__).parent.parent
STEPS = 6  # of a tiny run


def tiny(name: str):
    """Two epochs of three steps of an MLP with one layer."""
    config = runpy.run_path(str(ROOT / f"configs/experiments/{name}.py"))["get_config"]()
    config.epochs, config.batch_size, config.seeds, config.workers = 2, 20, 2, "2"
    config.data.update(name="digits", train_size=90, validation_size=20, test_size=40)
    config.encoder.update(name="mlp", width=8, depth=1, norm="batch")
    config.augment.update(mean=(0.5,), std=(0.5,), flip=0.0)
    if name == "robustness":
        config.grid.update(learning_rate=1e-2, factors=(10.0, 1.0), weight_decays=(0.5, 0.01))
        config.together = "3"  # of the eight runs of an arm: chunks of 3, 3 and 2
    if name == "ablation":
        config.search.update(learning_rates=(5e-2,), weight_decays=(2.0, 0.1))
        # Under a norm a bias has no gradient but rounding, which Adam makes as large as any other.
        config.encoder.norm = "none"
    return config


def run(config, directory, interrupted=lambda: False):
    run_experiment(config, str(directory), interrupted)
    path = directory / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def cells_in(directory) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: read_cell(path) for path in sorted((directory / "cells").iterdir())}


@pytest.fixture(scope="module")
def programs():
    """Builds and compiles the program of a kind once for all commands with the same data."""
    known, build = {}, decay_grid.build_program

    def once(lab, kind):
        key = kind, lab.steps_per_epoch, str(lab.config.encoder)
        known[key] = known.get(key) or build(lab, kind)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (decay_grid, robustness):
            patch.setattr(module, "build_program", once)
        yield known


# --- Whole commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_grid(tmp_path_factory, programs):
    directory = tmp_path_factory.mktemp("robustness")
    return directory, run(tiny("robustness"), directory)


def test_grid_tells_all_cells(finished_grid):
    directory, result = finished_grid
    assert (
        result["experiment"] == "robustness" and result["runs"] == 24 and result["steps"] == STEPS
    )
    assert result["learning_rates"] == [0.1, 0.01] and result["layers"] == [
        "encoder/linear1",
        "head",
    ]
    found = cells_in(directory)
    for name, arm in result["arms"].items():
        kind = {"WD": "decoupled", "LPWD": "pre-mean"}[name]
        cell = [found[f"adam-{kind}-rate0.1-decay0.5-seed{seed}.npz"] for seed in (0, 1)]
        expected = np.mean([c["test_accuracy"][-1] for c in cell])
        np.testing.assert_allclose(arm["test"]["mean"][0][0], expected, rtol=1e-4)
        np.testing.assert_allclose(
            arm["loss_curves"][0][0], np.mean([c["loss"] for c in cell], 0), rtol=1e-4
        )
    assert np.shape(result["opposing"]["ratio"]) == (2, 2, 2, 3)
    assert {p.stem for p in (directory / "figures").iterdir()} == {
        *("robustness", "opposing", "opposing_grid", "opposing_layers", "strong_penalty"),
        "pwd_rwd",
    }
    assert "of 4 cells" in (directory / "table.md").read_text()


def test_pwd_against_rwd_is_figure_3b(finished_grid, figures, tmp_path):
    """At the largest rate, by decay: differences of accuracies, paired over the seeds."""
    directory, result = finished_grid
    found = cells_in(directory)

    def accuracies(kind, decay):
        cells = [found[f"adam-{kind}-rate0.1-decay{decay}-seed{seed}.npz"] for seed in (0, 1)]
        return np.stack([cell["test_accuracy"] for cell in cells]).astype(np.float64)

    pair = result["pwd_rwd"]
    assert pair["learning_rate"] == 0.1
    for j, decay in enumerate((0.5, 0.01)):
        pwd, rwd = accuracies("pre", decay), accuracies("realtime", decay)
        for key, values in (
            ("last_epoch", pwd[:, -1] - rwd[:, -1]),
            ("best_10_epochs", pwd.mean(axis=1) - rwd.mean(axis=1)),  # there are two epochs
        ):
            expected = intervals.mean_and_interval(values)
            assert pair[key]["mean"][j] == pytest.approx(expected["mean"], abs=1e-6)
            assert pair[key]["interval"][j] == pytest.approx(expected["interval"], abs=1e-6)
    reports.draw(result, tmp_path)
    line = dict(figures)["pwd_rwd.png"].axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * np.array(pair["last_epoch"]["mean"]))
    assert "PWD against RWD at learning rate 0.1, 2 seeds" in (directory / "table.md").read_text()
    older = {name: value for name, value in result.items() if name != "pwd_rwd"}
    assert "PWD against RWD" not in reports.report(older)


def test_the_mean_of_the_best_epochs_is_of_ten():
    config = tiny("robustness")
    config.seeds = 1
    curve = np.arange(15) / 100
    runs = {("PWD", j, 0): {"test_accuracy": curve} for j in (0, 1)}
    runs |= {("RWD", j, 0): {"test_accuracy": np.zeros(15)} for j in (0, 1)}
    found = robustness.pair_result(config, runs)
    assert found["best_10_epochs"]["mean"] == pytest.approx([np.mean(np.arange(5, 15)) / 100] * 2)


def test_goes_on_where_it_was_interrupted(finished_grid, tmp_path, capsys):
    asked = []
    assert (
        run(tiny("robustness"), tmp_path, lambda: asked.append(1) or len(asked) > 5 * STEPS) is None
    )
    assert "the same command goes on from here" in capsys.readouterr().out
    before = set(cells_in(tmp_path))
    assert 0 < len(before) < 16
    result = run(tiny("robustness"), tmp_path)
    whole = cells_in(finished_grid[0])
    assert f"{len(before)} of them done before" in capsys.readouterr().out
    for name, arrays in cells_in(tmp_path).items():
        for key in arrays.keys() - {"seconds"}:
            np.testing.assert_array_equal(arrays[key], whole[name][key], err_msg=f"{name} {key}")
    assert {**result, "seconds": 0} == {**finished_grid[1], "seconds": 0}


def test_a_damaged_cell_is_named_and_nothing_is_lost(finished_grid):
    directory, _ = finished_grid
    path = sorted((directory / "cells").iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    files = sorted(directory.rglob("*"))
    with pytest.raises(UserError, match=f"{path.name}: damaged"):
        run(tiny("robustness"), directory)
    assert sorted(directory.rglob("*")) == files
    path.write_bytes(whole)


def test_another_configuration_is_refused(finished_grid):
    config = tiny("robustness")
    config.grid.learning_rate = 0.5
    with pytest.raises(UserError, match="grid.learning_rate 0.01 -> 0.5"):
        run(config, finished_grid[0])


@pytest.fixture(scope="module")
def finished_ablation(tmp_path_factory, programs):
    directory = tmp_path_factory.mktemp("ablation")
    return directory, run(tiny("ablation"), directory)


@pytest.mark.slow
def test_ablation_shows_the_identities(finished_ablation):
    _, result = finished_ablation
    deviations = result["deviations"]
    assert deviations["steps"] == [1, 3, STEPS]
    for pair in ("RWD against WD at (1 - d) eta", "RWD from D theta_0 against D PWD"):
        assert 0 < max(deviations[pair]) < 1e-4, pair
    # d is 0.1 or 0.005 here: without the identity's (1 - d) the two are far from each other.
    assert min(deviations["for comparison: RWD against WD"]) > 1e-4
    for gap in ("RWD - WD", "PWD - RWD"):
        assert result["gaps"][gap]["identity: rounding"]["mean"] == 0


@pytest.mark.slow
def test_the_terms_of_a_gap_add_up_to_it(finished_ablation):
    for gap, terms in finished_ablation[1]["gaps"].items():
        if gap != "control":
            parts = sum(value["mean"] for term, value in terms.items() if term != "whole")
            assert terms["whole"]["mean"] == pytest.approx(parts, abs=1e-9), gap


@pytest.mark.slow
def test_no_decay_and_l2_stand_beside_the_methods(finished_ablation):
    """The first two rows of the paper's table 1."""
    directory, result = finished_ablation
    assert list(result["methods"]) == ["none", "L2", "WD", "RWD", "PWD", "LPWD"]
    assert result["methods"]["none"]["weight_decay"] == result["share"]["none"] == 0
    assert "L2" not in result["share"]
    tried = {(name, decay) for name, _, decay, _ in result["search"]}
    assert {decay for name, decay in tried if name == "none"} == {0.0}
    assert {decay for name, decay in tried if name == "L2"} == {2.0, 0.1}
    found = cells_in(directory)

    def last(kind, decay):
        names = [f"adam-{kind}-rate0.05-decay{decay:g}-seed{seed}.npz" for seed in (1, 2)]
        return np.array([found[name]["test_accuracy"][-1] for name in names])

    ahead = last("coupled", result["methods"]["L2"]["weight_decay"]) - last("decoupled", 0)
    assert result["methods"]["L2"]["ahead_of_none"]["mean"] == pytest.approx(ahead.mean())
    assert result["methods"]["none"]["ahead_of_none"]["mean"] == 0
    table = (directory / "table.md").read_text()
    assert "ahead of no decay" in table and "| L2 | 0.05 |" in table


@pytest.mark.slow
def test_settings_are_chosen_on_held_out_images(finished_ablation):
    _, result = finished_ablation
    for name, method in result["methods"].items():
        tried = {
            (rate, decay): value
            for method, rate, decay, value in result["search"]
            if method == name
        }
        assert tried[method["learning_rate"], method["weight_decay"]] == max(tried.values())


def test_zero_shot_ends(tmp_path, programs):
    config = tiny("zero_shot")
    config.every = 25
    config.networks = {"batch": {"norm": "batch", "learning_rate": 0.05}}
    result = run(config, tmp_path)
    names = ["batch", "batch, own statistics"]
    assert result["s"] == [0, 25, 50, 75, 100] and list(result["networks"]) == names
    curve = result["networks"]["batch"]
    assert curve["accuracy"]["mean"][0] == pytest.approx(np.mean(result["trained"]["batch"]))
    for name in names:  # logits of zero: ln 10 nats, and always the first class
        assert result["networks"][name]["loss"]["mean"][-1] == pytest.approx(np.log(10), rel=1e-4)
        zeros = np.mean(digits_test_labels(40) == 0)
        assert result["networks"][name]["accuracy"]["mean"][-1] == pytest.approx(zeros)
    assert (tmp_path / "figures" / "zero_shot.png").exists()


def digits_test_labels(count):
    from ssl_jax.data.sources import load_dataset

    return load_dataset("digits").test.label[:count]


# --- Weights to start from ------------------------------------------------------------------------


@pytest.fixture
def weights_file(tmp_path):
    """A tiny ConvNeXt in timm's names, and its arrays."""
    arrays = draw_file((1, 1, 3, 1), 4, 5)
    save_file(arrays, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", arrays


def convnext_config(path):
    config = tiny("strong_penalty")
    config.arms, config.strong.rates = ("WD", "RWD"), {"adam": 1e-3}
    config.data.image_size, config.augment.mean, config.augment.std = 32, (0.5,), (0.5,)
    config.encoder.update(name="convnext_tiny", width=4, depth=1, norm="auto")
    config.weights.convnext_tiny = str(path)
    return config


def test_runs_start_from_weights_and_differ_in_their_heads(weights_file):
    """All members have the file's encoder; the file's head is of five classes and is left out."""
    path, arrays = weights_file
    config = convnext_config(path)
    kind = decay_grid.arm(config, "WD")
    image = np.zeros((2, 32, 32, 3), np.float32)
    classifier = decay_grid.build_classifier(config, kind, 10)
    shapes = jax.eval_shape(classifier.init, jax.random.key(0), image)
    start = decay_grid.initial_weights(config, kind, *shapes)
    assert set(start[0]) == {"encoder"}
    order = ("encoder",)
    program = make_program(
        classifier=classifier,
        optimizer=decay_grid.build_optimizer(config, kind, order),
        augment=None,
        normalise=None,
        loss=None,
        num_classes=10,
        weights=start,
    )
    members = stack([Member(1e-3, 0.1, seed) for seed in (0, 1)])
    params = program.init(members, image).params
    kernel = arrays["stem.0.weight"].transpose(2, 3, 1, 0)
    for member in range(2):
        np.testing.assert_array_equal(params["encoder"]["stem_conv"]["kernel"][member], kernel)
    heads = params["head"]["kernel"]
    assert not np.array_equal(heads[0], heads[1])
    config.weights.convnext_tiny = ""
    assert decay_grid.initial_weights(config, kind, *shapes) == ({}, {})


def test_the_head_of_the_file_is_taken_where_it_fits(weights_file):
    path, arrays = weights_file
    config = convnext_config(path)
    kind = decay_grid.arm(config, "WD")
    classifier = decay_grid.build_classifier(config, kind, 5)
    shapes = jax.eval_shape(
        classifier.init, jax.random.key(0), np.zeros((2, 32, 32, 3), np.float32)
    )
    start = decay_grid.initial_weights(config, kind, *shapes)
    np.testing.assert_array_equal(start[0]["head"]["kernel"], arrays["head.fc.weight"].T)


def test_a_file_of_weights_is_checked_before_anything_is_read(tmp_path, weights_file):
    path, _ = weights_file
    config = convnext_config(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"weights.convnext_tiny: got .*, which is no file"):
        run(config, tmp_path / "run")
    config = convnext_config(path)  # of width 4
    config.encoder.width = 8
    with pytest.raises(UserError, match="weights"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_experiment_runs_from_weights(tmp_path, weights_file):
    path, arrays = weights_file
    save_file(arrays | {"stem.0.weight": arrays["stem.0.weight"][:, :1].copy()}, path)
    config = convnext_config(path)
    config.data.update(train_size=60)
    config.epochs = config.seeds = 1
    result = run(config, tmp_path / "run")
    assert result["runs"] == 2


# --- Full scale -----------------------------------------------------------------------------------


def promised():
    """The experiments of the page's part on layer-wise decay, each of which has a full scale."""
    page = (ROOT / "docs/experiments.md").read_text()
    part = page.split("## Layer-wise pre-weight-decay")[1].split("\n## ")[0]
    return sorted(set(re.findall(r"configs/experiments/(\w+)\.py --workdir", part)))


def test_the_part_on_layer_wise_decay_has_its_experiments():
    assert promised() == ["ablation", "model_scale", "robustness", "strong_penalty", "zero_shot"]


@pytest.mark.parametrize("name", promised())
def test_full_is_the_papers_scale(name):
    """Section 4: 32x32, batches of 512, 100 epochs, networks of timm's sizes."""
    get_config = runpy.run_path(str(ROOT / f"configs/experiments/{name}.py"))["get_config"]
    config = get_config("full")
    assert (config.batch_size, config.epochs, config.data.train_size) == (512, 100, 0)
    assert (config.encoder.name, config.encoder.width) == ("convnext_tiny", 96)
    with pytest.raises(UserError, match="scale: got 'ful', did you mean 'full'"):
        get_config("ful")


# --- Parts ----------------------------------------------------------------------------------------


def test_shrinking_is_linear():
    params = {"w": np.array([2.0, -4.0], np.float32)}
    assert [zero_shot.shrunk(params, s)["w"].tolist() for s in (0, 50, 75, 100)] == [
        *([2.0, -4.0], [1.0, -2.0], [0.5, -1.0], [0.0, 0.0])
    ]
    assert zero_shot.last_within(np.array([0.8, 0.79, 0.71, 0.75]), [0, 10, 20, 30]) == 10
    assert zero_shot.last_within(np.array([0.8, 0.8]), [0, 100]) == 100


@pytest.mark.parametrize("scale", ["lr", "literal"])
def test_a_slowed_setting_takes_the_same_of_a_weight(scale):
    config = tiny("ablation")
    config.optimizer.decay_scale = scale
    setting = (0.2, 0.5)
    slowed = ablation.slowed(config, setting)
    d = {"lr": 0.1, "literal": 0.5}[scale]
    assert ablation.share(config, setting) == pytest.approx(d)
    assert ablation.share(config, slowed) == pytest.approx(d)
    assert slowed[0] == pytest.approx((1 - d) * 0.2)


def test_penalty_and_scale_have_the_runs_that_they_name():
    config = tiny("strong_penalty")
    runs = strong_penalty.penalty_runs(config)
    assert len(runs) == 2 * 4 * config.seeds
    assert runs["momentum", "LPWD", 1] == decay_grid.Run(
        decay_grid.Kind("momentum", "pre", "mean"), Member(0.5, 0.5, 1)
    )
    config = tiny("model_scale")
    config.sizes, config.weight_decays = ("mlp-4-1", "mlp-8-2"), (0.1, 0.2)
    kinds = {run.kind.encoder for run in model_scale.choice_runs(config).values()}
    assert kinds == {
        tuple(zip(("name", "width", "depth"), ("mlp", w, d), strict=True))
        for w, d in ((4, 1), (8, 2))
    }
    tried = {
        key: {"validation_accuracy": np.array([0.9, key[2]])}
        for key in model_scale.choice_runs(config)
    }
    assert set(model_scale.choose(config, tried).values()) == {0.2}
    assert set(decay_grid.fresh_seeds(config)).isdisjoint({config.seed})


def test_results_of_penalty_and_scale_are_tables_and_figures(tmp_path):
    rng = np.random.default_rng(0)
    config = tiny("strong_penalty")
    found = {
        key: {"loss": rng.random(3), "test_accuracy": rng.random(3)}
        for key in strong_penalty.penalty_runs(config)
    }
    found["adam", "WD", 0]["loss"][-1] = np.nan
    result = strong_penalty.penalty_result(config, found) | {"experiment": "strong_penalty"}
    difference = [
        found["adam", "PWD", s]["test_accuracy"][-1] - found["adam", "WD", s]["test_accuracy"][-1]
        for s in (0, 1)
    ]
    assert result["optimizers"]["adam"]["arms"]["PWD"]["ahead_of_WD"]["mean"] == pytest.approx(
        np.mean(difference)
    )
    result = json.loads(json.dumps(result))
    assert "| adam, 0.05 | WD | not finite |" in reports.report(result)
    reports.draw(result, tmp_path)
    config = tiny("model_scale")
    pairs = model_scale.size_kinds(config)
    found = {(*pair, s): {"test_accuracy": rng.random(3)} for pair in pairs for s in (0, 1)}
    chosen, counts = (
        dict.fromkeys(pairs, 0.5),
        {size: 10 ** (i + 3) for i, size in enumerate(config.sizes)},
    )
    result = model_scale.scale_result(config, chosen, found, counts) | {"experiment": "model_scale"}
    assert "| convnet-16 | 10,000 | LPWD | 0.5 |" in reports.report(result)
    reports.draw(result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"strong_penalty.png", "model_scale.png"}


def test_batches_are_filled_up_without_being_counted(monkeypatch):
    monkeypatch.setattr(decay_grid, "EVAL_BATCH_SIZE", 4)
    image, label = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.arange(6, dtype=np.int32)
    batches = decay_grid.in_batches(Split(image, label))
    assert [len(label) for _, label in batches] == [4, 4] and batches[1][1].tolist() == [
        4,
        5,
        -1,
        -1,
    ]

    def score(image, label):
        return {"right": np.array([np.sum(label >= 3)]), "loss": np.array([3.0])}

    right, loss = decay_grid.mean_scores(score, batches)
    assert right == pytest.approx(3 / 6) and loss == pytest.approx(6.0 / 6)


def test_a_run_gets_the_arrays_of_its_own_member(monkeypatch):
    def stub(chunk, *rest, **options):
        return None, {"rate": np.array([member.learning_rate for member in chunk])}

    monkeypatch.setattr(decay_grid, "dispatched", lambda program, chunk, *rest: chunk)
    monkeypatch.setattr(decay_grid, "train_members", stub)
    kind = decay_grid.Kind("adam", "pre")
    runs = [decay_grid.Run(kind, Member(rate, 0.1, 0)) for rate in (0.3, 0.1, 0.2)]
    sizes = {
        "steps_per_epoch": 1,
        "image": np.zeros(4),
        "label": np.zeros(4),
        "eval_batches": {},
        "num_classes": 2,
    }
    lab = decay_grid.Laboratory(tiny("robustness"), augment=None, normalise=None, **sizes)
    for size in (3, 5):
        arrays = decay_grid.train_chunk(
            lab, None, runs, size, stop=lambda n: False, keep=(), after=None
        )
        assert [float(own["rate"]) for own in arrays] == [0.3, 0.1, 0.2]


@pytest.mark.parametrize("labels", [("ahead", "plain"), ("plain", "ahead")])
def test_runs_that_share_a_cell_are_trained_once_with_all_that_is_recorded(labels, monkeypatch):
    kinds = {
        "plain": decay_grid.Kind("adam", "pre"),
        "ahead": decay_grid.Kind("adam", "pre", ahead=True),
    }
    runs = {label: decay_grid.Run(kinds[label], Member(0.1, 0.5, 0)) for label in labels}
    sizes = {
        "steps_per_epoch": 1,
        "image": np.zeros(4),
        "label": np.zeros(4),
        "eval_batches": {},
        "num_classes": 2,
    }
    config = tiny("ablation")
    lab = decay_grid.Laboratory(config, augment=None, normalise=None, **sizes)
    monkeypatch.setattr(decay_grid, "build_program", lambda lab, kind: (kind, []))
    trained = []
    monkeypatch.setattr(
        decay_grid,
        "train_chunk",
        lambda lab, program, chunk, *rest, **options: trained.append((program, *chunk)),
    )
    plan = decay_grid.plan_runs(decay_grid.Stage("", lambda config: runs), config, lab)
    assert plan.names["plain"] == plan.names["ahead"]
    for job in plan.jobs(list(dict.fromkeys(plan.names.values()))):
        job.make(None)
    assert trained == [(kinds["ahead"], runs["ahead"])]
    # A cell of the other run alone is no whole one.
    assert not plan.complete(plan.names["ahead"], {}) and plan.complete(
        plan.names["ahead"], {"test_accuracy_ahead": 0}
    )


def test_runs_have_files_of_their_own():
    config = tiny("ablation")
    runs = [*ablation.arm_runs(config, dict.fromkeys(ablation.METHODS, (0.1, 0.5))).values()]
    runs += ablation.search_runs(config).values()
    runs = {run._replace(kind=run.kind._replace(ahead=False)) for run in runs}
    assert len({run.name for run in runs}) == len(runs)


# --- Figures and numbers --------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, kept open."""
    drawn = []
    monkeypatch.setattr(reports, "save", lambda figure, path: drawn.append((path.name, figure)))
    yield drawn
    plt.close("all")


def test_heat_maps_label_every_cell(figures):
    values = np.array([[60.14, np.nan], [10.0, 99.96]])
    rates, decays = [0.01, 0.001], [0.5, 0.05]
    figure = parts.heat_maps({"WD": values}, rates, decays, "t", difference={"d": values - 50})
    panels = [axis for axis in figure.axes if axis.images]
    assert [[text.get_text() for text in axis.texts] for axis in panels] == [
        ["60.1", "NaN", "10.0", "100.0"],
        ["10.1", "NaN", "-40.0", "50.0"],
    ]
    np.testing.assert_array_equal(panels[0].images[0].get_array().filled(np.nan), values)
    (circle,) = panels[0].lines
    # the largest: last rate, last decay
    assert (circle.get_xdata()[0], circle.get_ydata()[0]) == (1, 1)
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["0.01", "0.001"]
    low, high = panels[1].images[0].get_clim()
    assert low == -high and high == pytest.approx(99.96 - 50)
    assert not panels[1].lines


def test_grid_figures_show_the_arrays(finished_grid, figures, tmp_path):
    result = finished_grid[1]
    reports.draw(result, tmp_path)
    drawn = dict(figures)
    ratio = np.array(result["opposing"]["ratio"])
    lines = drawn["opposing.png"].axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), ratio[0, 0, :, -1])
    assert lines[0].get_label() == "rate 0.1, decay 0.5" and len(lines) == 4
    np.testing.assert_allclose(
        drawn["opposing_layers.png"].axes[0].lines[1].get_ydata(), ratio[0, 0, :, 1]
    )
    a = ratio[..., -1].mean(axis=2)
    np.testing.assert_allclose(
        drawn["opposing_grid.png"].axes[1].images[0].get_array(), 100 * a / (1 + a)
    )
    maps = [axis.images[0].get_array() for axis in drawn["robustness.png"].axes]
    np.testing.assert_allclose(maps[1] - maps[0], maps[2], atol=0.01)
    (loss, _), lpwd = drawn["strong_penalty.png"].axes, result["arms"]["LPWD"]["loss_curves"]
    np.testing.assert_allclose(loss.lines[1].get_ydata(), lpwd[0][0])


def test_paired_differences_against_scipy():
    from scipy.stats import ttest_rel

    a, b = np.random.default_rng(0).normal(size=(2, 5))
    low, high = ttest_rel(a, b).confidence_interval()
    found = intervals.paired(a, b)
    assert found["mean"] - found["interval"] == pytest.approx(low)
    assert found["mean"] + found["interval"] == pytest.approx(high)
    assert intervals.paired(a[:1], b[:1])["interval"] is None


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, field, value, words",
    [
        ("robustness", "grid.weight_decays", (0.5, -0.1), r"grid.weight_decays: got \(0.5, -0.1\)"),
        ("robustness", "grid.factors", (), r"grid.factors: got \(\)"),
        ("robustness", "workers", "none", "workers: got 'none'"),
        ("robustness", "together", "0", "together: got '0'"),
        ("robustness", "layerwise", "i/m", "optimizer.layerwise: got 'i/m'"),
        ("robustness", "encoder.name", "convnett", "encoder.name: got 'convnett'"),
        (
            "robustness",
            "encoder",
            {"name": "convnext_tiny", "norm": "auto"},
            "data.image_size: got 8",
        ),
        ("robustness", "optimizer.name", "adamm", "did you mean 'adam'"),
        ("robustness", "optimizer.exclude", "nothing", "optimizer.exclude: got 'nothing'"),
        ("robustness", "epochs", 0, "epochs: got 0"),
        ("robustness", "data.validation_size", 0, "data.validation_size: got 0"),
        ("robustness", "data.validation_size", 90, "data.validation_size: got 90"),
        ("robustness", "data.test_size", 501, "data.test_size: got 501"),
        ("robustness", "batch_size", 80, "batch_size: got 80"),
        ("robustness", "experiment", "robustnes", "did you mean 'robustness'"),
        ("strong_penalty", "arms", ("PWD",), "arms: got"),
        ("strong_penalty", "arms", ("WD", "QWD"), "arms: got 'QWD'"),
        ("strong_penalty", "strong.weight_decay", -1.0, "strong.weight_decay: got"),
        ("model_scale", "sizes", ("mlp-x",), "sizes: got 'mlp-x'"),
        ("zero_shot", "every", 7, "every: got 7"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(tmp_path, name, field, value, words):
    config = tiny(name)
    config.update({field: value} if isinstance(value, dict) else {})
    if not isinstance(value, dict):
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_literal_share_of_one_is_refused(tmp_path):
    config = tiny("robustness")
    config.optimizer.decay_scale = "literal"
    config.grid.weight_decays = (0.9, 0.1)
    # 0.9 * 4 / 3 in the last of two layers
    with pytest.raises(UserError, match="optimizer.layerwise"):
        run(config, tmp_path / "new")
