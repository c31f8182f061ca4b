"""What a run starts from: files under anybody's names, exported folders, and other runs."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import TINY
from safetensors.numpy import save_file
from test_convnext import draw_file

from ssl_jax import launch
from ssl_jax.builders import pretraining, supervised
from ssl_jax.builders.weights import begin_with, find_weights, read_weights
from ssl_jax.errors import UserError
from ssl_jax.models import load_weights, make_classifier, make_encoder
from ssl_jax.optim import make_optimizer
from ssl_jax.train.state import PretrainState
from ssl_jax.train.supervised import SupervisedState
from ssl_jax.workdir import checkpoints
from ssl_jax.workdir.directory import write_json

ROOT = Path(__file__).parent.parent
SIDE = jnp.zeros((2, 8, 8, 1))


def config_of(name, argument=None, **fields):
    get = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    config = get(argument) if argument else get()
    small = {"encoder.name": "convnet_digits", "encoder.width": 4, "data.name": "digits"}
    if config.task == "pretrain":
        small |= {"projector.hidden": 8, "projector.out": 6, "predictor.hidden": 8}
    else:
        small |= {"augment.mean": (0.0,), "augment.std": (1.0,)}
    config.update_from_flattened_dict(small | fields)
    return config


def drawn(like, seed):
    """Numbers of their own for every array, so that a mix-up shows."""
    leaves, tree = jax.tree.flatten(like)
    rng = np.random.default_rng(seed)
    return tree.unflatten([rng.normal(size=x.shape).astype(x.dtype) for x in leaves])


def pretrain_state(config, seed):
    network = pretraining.build_network(config, None)
    predictor = pretraining.build_predictor(config, None)
    params, stats = jax.eval_shape(network.init, jax.random.key(0), SIDE)
    own, memory = jax.eval_shape(predictor.init, jax.random.key(0))
    params = drawn(params | {"predictor": own}, seed)
    target = {part: params[part] for part in ("encoder", "projector")}
    state = PretrainState(np.int32(7), params, drawn(stats, seed + 1), target, {}, memory)
    return state._replace(memory=drawn(memory, seed + 2))


def supervised_state(config, seed, classes=10):
    encoder = supervised.build_encoder(config, None)
    shapes = jax.eval_shape(make_classifier(encoder, classes).init, jax.random.key(0), SIDE)
    params, stats = drawn(shapes, seed)
    return SupervisedState(np.int32(7), params, stats, {})


def save_run(folder, config, state, steps=(7,)):
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_dict())
    with checkpoints.open_manager(folder / "checkpoints", "none") as manager:
        for step in steps:
            checkpoints.save(manager, state, step, {}, {"image": [8, 8, 1]})
        checkpoints.finish(manager)
    return folder


class Runs(NamedTuple):
    pretrained: Path
    supervised: Path
    states: tuple


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    configs = config_of("quickstart"), config_of("supervised")
    states = pretrain_state(configs[0], 10), supervised_state(configs[1], 20)
    paths = [
        save_run(folder / name, config, state)
        for name, config, state in zip(("pretrained", "supervised"), configs, states, strict=True)
    ]
    return Runs(*paths, states)


def read(path, config, state, **fields):
    config.update_from_flattened_dict({"weights": str(path), **fields})
    source = find_weights(config, Path("/nowhere"))
    assert source is not None
    return read_weights(source, config, state)


def words(weights):
    return {row.part: row.words for row in weights.rows}


# --- From a run -----------------------------------------------------------------------------------


def test_pretraining_goes_on_from_pretraining(runs):
    config = config_of("quickstart")
    ours, theirs = pretrain_state(config, 30), runs.states[0]
    weights = read(runs.pretrained, config, ours)
    assert words(weights) == dict.fromkeys(("encoder", "projector", "predictor"), "taken")
    optimizer = make_optimizer("momentum", 0.1)
    state = begin_with(weights, ours._replace(opt_state=optimizer.init(ours.params)), optimizer)
    chex.assert_trees_all_equal(
        (state.params, state.stats, state.memory), (theirs.params, theirs.stats, ours.memory)
    )
    # the target is a copy of the online network, and no buffer stands twice in the state
    chex.assert_trees_all_equal(state.target["encoder"], theirs.params["encoder"])
    chex.assert_trees_all_equal(state.target["projector"], theirs.params["projector"])
    leaves = jax.tree.leaves(state)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
    pairs = zip(
        jax.tree.leaves(state.target["encoder"]),
        jax.tree.leaves(state.params["encoder"]),
        strict=True,
    )
    assert not any(np.shares_memory(one, other) for one, other in pairs)
    assert weights.parent["step"] == 7 and len(weights.parent["sha256"]) == 64
    size = sum(leaf.size for leaf in jax.tree.leaves(theirs.params["encoder"]))
    size += sum(leaf.size for leaf in jax.tree.leaves(theirs.stats["encoder"]))
    assert weights.rows[0].size == 4 * size


def test_the_optimizer_starts_from_what_is_taken(runs):
    config = config_of("quickstart")
    ours = pretrain_state(config, 30)
    optimizer = make_optimizer("lookahead", 0.1)
    state = begin_with(read(runs.pretrained, config, ours), ours, optimizer)
    chex.assert_trees_all_equal(state.opt_state, jax.device_get(optimizer.init(state.params)))
    assert jax.tree.leaves(state.opt_state)


def test_no_target_is_made_where_there_is_none(runs):
    config = config_of("quickstart")
    ours = pretrain_state(config, 30)._replace(target={})
    state = begin_with(read(runs.pretrained, config, ours), ours, make_optimizer("momentum", 0.1))
    assert state.target == {}


def test_heads_of_another_shape_or_kind_are_drawn_anew(runs):
    config = config_of("quickstart", **{"projector.out": 5})
    weights = read(runs.pretrained, config, pretrain_state(config, 30))
    assert words(weights) == {
        "encoder": "taken",
        "projector": "fresh, params/projector/linear2/kernel has (8, 6) there, (8, 5) here",
        "predictor": "fresh, params/predictor/linear1/bias has (8,) there, (8,) here",
    } or words(weights)["predictor"].startswith("fresh, params/predictor/linear1/kernel has (6, 8)")
    assert set(weights.params) == set(weights.stats) == {"encoder"}
    config = config_of("quickstart", **{"predictor.kind": "linear"})
    weights = read(runs.pretrained, config, pretrain_state(config, 30))
    assert words(weights)["predictor"] == "fresh, predictor.kind 'mlp' there, 'linear' here"
    assert set(weights.params) == {"encoder", "projector"}


def test_fine_tuning_takes_the_encoder_alone(runs):
    config = config_of("supervised")
    ours, theirs = supervised_state(config, 30), runs.states[0]
    weights = read(runs.pretrained, config, ours)
    assert words(weights) == {
        "encoder": "taken",
        "head": "fresh, the other run has none",
        "predictor": "left out, this run has none",
        "projector": "left out, this run has none",
    }
    state = begin_with(weights, ours, make_optimizer("momentum", 0.1))
    chex.assert_trees_all_equal(state.params["encoder"], theirs.params["encoder"])
    chex.assert_trees_all_equal(state.stats, {"encoder": theirs.stats["encoder"]})
    chex.assert_trees_all_equal(state.params["head"], ours.params["head"])


@pytest.mark.parametrize("classes, taken", [(10, True), (7, False)])
def test_a_head_is_taken_where_it_fits(runs, classes, taken):
    config = config_of("supervised")
    weights = read(runs.supervised, config, supervised_state(config, 30, classes))
    assert ("head" in weights.params) == taken
    assert words(weights)["head"] == (
        "taken" if taken else "fresh, params/head/bias has (10,) there, (7,) here"
    )


def test_pretraining_takes_the_encoder_of_a_supervised_run(runs):
    config = config_of("quickstart")
    weights = read(runs.supervised, config, pretrain_state(config, 30))
    assert set(weights.params) == {"encoder"}
    chex.assert_trees_all_equal(weights.params["encoder"], runs.states[1].params["encoder"])


def test_another_normalisation_is_said(runs):
    config = config_of("supervised")
    state = supervised_state(config, 30)
    recipe = pretraining.build_recipe(config_of("quickstart"))
    config.augment.mean, config.augment.std = recipe.mean, recipe.std
    assert read(runs.pretrained, config, state).notes == []
    config.augment.mean = (recipe.mean[0] + 0.1,)
    (note,) = read(runs.pretrained, config, state).notes
    assert f"--config.augment.mean={recipe.mean[0]:g}" in note


def test_a_checkpoint_by_its_step(runs, tmp_path):
    config = config_of("quickstart")
    state = pretrain_state(config, 40)
    path = save_run(tmp_path / "run", config, state, steps=(3, 8))
    for given, step in (("3", 3), ("newest", 8)):
        assert read(path, config, state, weights_step=given).parent["step"] == step
    for given, line in (
        ("5", r"weights_step: got 5, .* has 3, 8; .*"),
        ("-2", "weights_step: got '-2', takes newest, best or the number of a step"),
        ("best", "weights: .*: no checkpoint has .*"),
    ):
        with pytest.raises(UserError, match=f"^{line}$"):
            read(path, config, state, weights_step=given)


def test_a_run_that_has_a_checkpoint_takes_nothing(runs):
    config = config_of("quickstart", weights="/no/such/thing")
    assert find_weights(config, runs.pretrained) is None
    assert find_weights(config_of("quickstart"), Path("/nowhere")) is None


REFUSED = {
    "nothing": (lambda folder: folder / "none", "got .*none, where nothing is; takes a file"),
    "empty folder": (lambda folder: folder, "got .*, which has no config.json; takes a file"),
    "export without config": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"") and folder or folder,
        "got .*, which has no config.json; takes a file",
    ),
    "other task": (
        lambda folder: write_json(folder / "config.json", {"task": "doctor"}) or folder,
        "got .*, the work directory of task 'doctor', and no model.safetensors in it; takes one",
    ),
    "no checkpoint": (
        lambda folder: (
            write_json(folder / "config.json", config_of("quickstart").to_dict()) or folder
        ),
        ".*checkpoints: no checkpoint found",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_source_is_one_line(name, tmp_path):
    make, line = REFUSED[name]
    config = config_of("supervised", weights=str(make(tmp_path)))
    with pytest.raises(UserError, match=f"^weights: {line}") as caught:
        find_weights(config, Path("/nowhere"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields, line",
    [
        (
            {"encoder.name": "convnet", "encoder.width": 8},
            "has encoder.name 'convnet_digits', encoder.width 4, this run 'convnet', 8; takes",
        ),
        ({"encoder.norm": "layer"}, "has encoder.norm 'batch', this run 'layer'; takes"),
        ({"encoder.activation": "gelu"}, "has encoder.activation 'relu', this run 'gelu'; takes"),
    ],
)
def test_a_run_of_another_architecture_is_refused(runs, fields, line):
    config = config_of("supervised", **fields)
    with pytest.raises(UserError, match=f"^weights: {re.escape(str(runs.pretrained))} {line}"):
        read(runs.pretrained, config, supervised_state(config, 30))


def test_what_means_the_same_is_no_other_architecture(runs):
    config = config_of("supervised", **{"encoder.norm": "batch", "encoder.activation": "relu"})
    assert "encoder" in read(runs.pretrained, config, supervised_state(config, 30)).params


def test_images_with_other_channels_are_refused_with_both_shapes(runs):
    config = config_of("supervised")
    encoder = supervised.build_encoder(config, None)
    params, stats = jax.eval_shape(
        make_classifier(encoder, 10).init, jax.random.key(0), jnp.zeros((2, 8, 8, 3))
    )
    state = SupervisedState(np.int32(0), params, stats, {})
    words = r"conv1/kernel has shape \(3, 3, 1, 4\), this configuration needs \(3, 3, 3, 4\)"
    with pytest.raises(UserError, match=f"^weights: .*{words}"):
        read(runs.pretrained, config, state)


# --- From files and exported folders --------------------------------------------------------------


def convnext_state(head=True):
    shapes = jax.eval_shape(
        make_classifier(make_encoder("convnext_tiny", width=4, depth=1), 5).init,
        jax.random.key(0),
        jnp.zeros((2, 32, 32, 3)),
    )
    params, stats = drawn(shapes, 50)
    if not head:
        del params["head"]
    return SupervisedState(np.int32(0), params, stats, {})


def convnext_config(**fields):
    return config_of(
        "supervised", **{"encoder.name": "convnext_tiny", "encoder.depth": 1, **fields}
    )


FILE = draw_file((1, 1, 3, 1), 4, 5)


def meta_name(name):
    """Meta's name of an array, from timm's: models/convnext.py of facebookresearch/ConvNeXt."""
    if match := re.fullmatch(r"stem\.(\d)\.(.*)", name):
        return f"downsample_layers.0.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"stages\.(\d)\.downsample\.(\d)\.(.*)", name):
        return f"downsample_layers.{match[1]}.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.*)", name):
        rest = match[3].replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        return f"stages.{match[1]}.{match[2]}.{rest}"
    return name.replace("head.norm", "norm").replace("head.fc", "head")


def own_names(separator, prefix=""):
    """The same arrays under our names, as a network holds them."""
    state = convnext_state()
    save = {"params": state.params["encoder"]}
    flat = jax.tree_util.tree_flatten_with_path(save)[0]
    return {
        prefix + separator.join(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in flat
    }, state


NAMES = {
    "timm": lambda name: name,
    "meta": meta_name,
    **{
        prefix: lambda name, prefix=prefix: prefix + name
        for prefix in (
            "module.",
            "_orig_mod.",
            "model.",
            "backbone.",
            "encoder.",
            "module.backbone.",
            "_orig_mod.module.model.encoder.",
        )
    },
    "meta in a wrapper": lambda name: f"module.{meta_name(name)}",
}


@pytest.mark.parametrize("names", NAMES)
def test_arrays_are_the_same_under_all_names(names, tmp_path):
    save_file(FILE, tmp_path / "timm.safetensors")
    save_file({NAMES[names](name): a for name, a in FILE.items()}, tmp_path / "x.safetensors")
    state = convnext_state()
    expected, got = (
        load_weights(tmp_path / f"{name}.safetensors", state.params, {}, "convnext_tiny", "w")[0]
        for name in ("timm", "x")
    )
    chex.assert_trees_all_equal(got, expected)
    assert not np.array_equal(got["head"]["bias"], state.params["head"]["bias"])


def test_metas_names_are_metas():
    """A few as its published files have them."""
    got = set(map(meta_name, FILE))
    assert got > {
        "downsample_layers.0.0.weight",
        "downsample_layers.1.1.weight",
        "stages.2.1.dwconv.weight",
        "stages.0.0.pwconv1.bias",
        "stages.3.0.gamma",
        "norm.weight",
        "head.bias",
    }


def test_arrays_outside_the_prefix_are_left_out_and_listed(tmp_path):
    file = {f"backbone.{name}": a for name, a in FILE.items() if not name.startswith("head.fc")}
    file |= {"projector.0.weight": np.zeros((3, 3), np.float32), "queue": np.zeros(4, np.float32)}
    save_file(file, tmp_path / "x.safetensors")
    weights = read(tmp_path / "x.safetensors", convnext_config(), convnext_state())
    assert words(weights) == {
        "encoder": "taken",
        "head": "fresh, no head",
        "left out": "projector.0.weight, queue: of no part of this run",
    }


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_our_own_names_are_read(separator, prefix, tmp_path):
    file, state = own_names(separator, prefix)
    save_file(file, tmp_path / "x.safetensors")
    weights = read(
        tmp_path / "x.safetensors",
        convnext_config(),
        convnext_state()._replace(params=drawn(state.params, 60)),
    )
    chex.assert_trees_all_equal(weights.params["encoder"], state.params["encoder"])


def test_our_own_names_serve_any_architecture(runs, tmp_path):
    """One that no library of PyTorch has, with statistics of BatchNorm."""
    state = runs.states[1]
    tree = {"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    file = {".".join(str(key.key) for key in path): np.abs(leaf) for path, leaf in flat}
    save_file(file, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"architecture": "ssl_jax_convnet_digits"})
    config = config_of("supervised")
    weights = read(tmp_path, config, supervised_state(config, 30))
    expected = {"encoder": jax.tree.map(np.abs, state.params["encoder"])}
    chex.assert_trees_all_equal(weights.params, expected)
    chex.assert_trees_all_equal(weights.stats, jax.tree.map(np.abs, state.stats))
    assert weights.parent["path"] == str(tmp_path)


def test_unknown_names_are_named(tmp_path):
    save_file({f"encoder_q.{name}": a for name, a in FILE.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="got names such as encoder_q.*under module., _orig_mod."):
        read(tmp_path / "x.safetensors", convnext_config(), convnext_state())


def exported(folder, **config):
    save_file(FILE, folder / "model.safetensors")
    write_json(folder / "config.json", {"architecture": "convnext_tiny", **config})
    return folder


def test_an_exported_folder(tmp_path):
    normalised = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    folder = exported(tmp_path, pretrained_cfg=normalised)
    config = convnext_config()
    weights = read(folder, config, convnext_state())
    chex.assert_trees_all_equal(
        weights.params["encoder"]["norm"]["scale"], FILE["head.norm.weight"]
    )
    assert weights.notes[0].endswith(
        "--config.augment.mean=0.1,0.2,0.3 --config.augment.std=0.4,0.5,0.6"
    )
    for stated in ({}, {"mean": "x", "std": [1]}, {"mean": [0.1] * 2, "std": [1] * 2}, 3):
        write_json(
            folder / "config.json",
            {"architecture": "convnext_tiny.fb_in1k", "pretrained_cfg": stated},
        )
        assert read(folder, config, convnext_state()).notes == []


@pytest.mark.parametrize("got", ["resnet18", "convnext_tiny_hnf", None, 3])
def test_an_exported_folder_of_another_architecture(got, tmp_path):
    exported(tmp_path, architecture=got)
    line = f"config.json has architecture {got!r}, which is not encoder.name convnext_tiny"
    with pytest.raises(UserError, match=f"^weights: .*{re.escape(line)}$"):
        read(tmp_path, convnext_config(), convnext_state())


@pytest.mark.parametrize(
    "name, architecture",
    [
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("swin_tiny", "swin_tiny_patch4_window4_224.ms_in22k"),
        ("convnet_digits", "ssl_jax_convnet_digits"),
        ("resnet50", "resnet50.a1_in1k"),
    ],
)
def test_names_of_architectures(name, architecture, tmp_path):
    exported(tmp_path, architecture=architecture)
    fields = {"encoder.name": name, "encoder.width": 32, "weights": str(tmp_path)}
    assert find_weights(config_of("supervised", **fields), Path("/nowhere")) is not None


def test_an_exported_folder_says_what_changes_no_shape(tmp_path):
    """Such as an activation, by the section that an export of ours has."""
    config = config_of("supervised")
    encoder = {**config.encoder.to_dict(), "activation": "gelu"}
    folder = exported(tmp_path, architecture="ssl_jax_convnet_digits", ssl_jax={"encoder": encoder})
    line = f"weights: {folder} has encoder.activation 'gelu', this run 'relu'; takes"
    with pytest.raises(UserError, match=f"^{re.escape(line)}"):
        find_weights(config_of("supervised", weights=str(folder)), Path("/nowhere"))
    config.encoder.activation = "gelu"
    config.weights = str(folder)
    assert find_weights(config, Path("/nowhere")) is not None
    for spoilt in ({"encoder": {}}, {"encoder": {"name": [], "width": "x"}}):
        write_json(folder / "config.json", {"ssl_jax": spoilt})
        with pytest.raises(UserError, match="^weights: .* has encoder.*, this run .*; takes a"):
            find_weights(config, Path("/nowhere"))


def test_pretraining_takes_the_encoder_of_a_file(tmp_path):
    save_file(FILE, tmp_path / "x.safetensors")
    weights = read(tmp_path / "x.safetensors", convnext_config(), convnext_state(head=False))
    assert set(weights.params) == {"encoder"}
    assert words(weights)["left out"] == "head: of no part of this run"


# --- Whole runs -----------------------------------------------------------------------------------

SUPERVISED = [
    "--config=configs/supervised.py:mlp",
    "--config.data.name=digits",
    "--config.encoder.width=8",
    "--config.encoder.depth=1",
    "--config.batch_size=20",
    "--config.data.validation_size=297",
    "--config.data.labelled_share=0.1",
    "--config.augment.flip=0",
    "--config.augment.mean=0",
    "--config.augment.std=1",
    "--config.checkpoint_every=1",
    "--config.optimizer.learning_rate=0",
]


def test_a_run_begins_with_the_weights_and_goes_on_without_them(tmp_path, monkeypatch, capfd):
    """At a learning rate of 0 the network stays what it began with."""
    monkeypatch.chdir(ROOT)
    fields = {"encoder.name": "mlp", "encoder.width": 8, "encoder.depth": 1}
    config = config_of("supervised", **fields)
    given = supervised_state(config, 70, classes=7)  # of which the head does not fit
    save_run(tmp_path / "parent", config, given)

    def start(epochs, *words):
        words = [f"--config.weights={tmp_path}/parent", f"--config.epochs={epochs}", *words]
        return launch.main(["launch.py", *SUPERVISED, f"--workdir={tmp_path}/run", *words])

    assert start(1) == 0
    said = capfd.readouterr().out
    assert f"weights from {tmp_path}/parent at step 7" in said
    assert re.search(r"head +2 arrays +90 numbers +fresh, params/head/bias has \(7,\)", said)
    assert "100 images, batch 20" in said  # a tenth of 1000
    shutil.rmtree(tmp_path / "parent")
    assert start(2) == 0 and "going on from step 5" in capfd.readouterr().out
    like = {"params": {"encoder": given.params["encoder"]}}
    for step in (5, 10):
        got = checkpoints.restore_parts(tmp_path / "run" / "checkpoints", step, like)
        chex.assert_trees_all_equal(got, like)
    stated = json.loads((tmp_path / "run" / "result.json").read_text())["provenance"]
    (parent,) = stated["parents"]
    assert (parent["path"], parent["step"]) == (f"{tmp_path}/parent", 7)
    assert "--config.epochs=1" in stated["command"]
    # another run needs it
    assert (
        launch.main(
            [
                "launch.py",
                *SUPERVISED,
                f"--workdir={tmp_path}/b",
                *[f"--config.weights={tmp_path}/parent"],
            ]
        )
        == 2
    )
    assert "where nothing is" in capfd.readouterr().err and not (tmp_path / "b").exists()


@pytest.mark.slow
def test_pretraining_begins_with_the_weights(runs, tmp_path, monkeypatch):
    """At a learning rate of 0 the encoder stays; the untrained one of the probes is not it."""
    monkeypatch.chdir(ROOT)
    parent = config_of("quickstart", **{"projector.hidden": 16, "projector.out": 8})
    given = pretrain_state(parent, 80)
    given = given._replace(
        params=jax.tree.map(lambda x: 0.1 * x, given.params),
        stats=jax.tree.map(np.abs, given.stats),
    )
    save_run(tmp_path / "parent", parent, given)
    results = []
    for name, fields in (("a", [f"--config.weights={tmp_path}/parent"]), ("b", [])):
        words = [*TINY, "--config.optimizer.learning_rate=0", "--config.probe.random_init=True"]
        words += ["--config.epochs=1", *fields, f"--workdir={tmp_path}/{name}"]
        assert launch.main(["launch.py", "--config=configs/quickstart.py", *words]) == 0
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    got = checkpoints.restore_parts(
        tmp_path / "a" / "checkpoints",
        4,
        {"params": {"encoder": given.params["encoder"], "projector": given.params["projector"]}},
    )
    chex.assert_trees_all_close(
        got["params"], {part: given.params[part] for part in ("encoder", "projector")}, atol=0
    )
    one, other = results
    assert one["random_init_knn_accuracy"] == other["random_init_knn_accuracy"]
    assert one["rankme"] != one["random_init_rankme"]
    assert other["provenance"]["parents"] == []
