"""What is refused before any long work: the numbers, names and sizes of a configuration, each by
its own line.
"""

import math
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.augment.views import make_recipe
from ssl_jax.builders import program
from ssl_jax.builders.checks import (
    PROBE_RANGES,
    RANGES,
    SUPERVISED_RANGES,
    check_counts,
    check_few_labels,
    check_probe,
    check_ranges,
    check_sizes,
    check_supervised,
    check_views,
)
from ssl_jax.builders.data import build_cadence
from ssl_jax.builders.optimizer import schedule_options
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.splits import _warn_once
from ssl_jax.errors import UserError
from ssl_jax.workdir.directory import flatten

CONFIGS = Path(__file__).parent.parent / "configs"


def config_of(name: str, **fields):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.update_from_flattened_dict(fields)
    return config


def line_of(check, *given) -> str:
    """The one line of the refusal."""
    with pytest.raises(UserError) as refused:
        check(*given)
    line = str(refused.value)
    assert "\n" not in line
    return line


# --- One example a device -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, fields, refused",
    [
        ("quickstart", {}, True),
        ("quickstart", {"encoder.norm": "layer"}, True),  # the heads still have BatchNorm
        ("supervised", {"encoder.name": "resnet18"}, True),
        ("supervised", {"encoder.name": "resnet18", "encoder.norm": "group"}, False),
        ("supervised", {"encoder.name": "convnext_tiny"}, False),
    ],
)
def test_one_example_a_device_has_no_statistics(name, fields, refused):
    config = config_of(name, sync_batch_norm=False, devices=4, batch_size=4, **fields)
    if refused:
        line = line_of(program.pick_devices, config)
        assert (
            line.startswith("batch_size: got 4, one example a device") and "sync_batch_norm" in line
        )
    else:
        program.pick_devices(config)
    for change in ({"sync_batch_norm": True}, {"batch_size": 8}, {"devices": 2}):
        other = config.copy_and_resolve_references()
        other.update(change)
        program.pick_devices(other)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"batch_size": 12, "devices": 2, "accumulate": 4}, "got 4, takes a divisor of 6"),
        ({"batch_size": 12, "devices": 1, "accumulate": 24}, "got 24, takes a divisor of 12"),
        ({"batch_size": 4, "devices": 1, "accumulate": 4}, "one example, takes at most 2"),
        (
            {"batch_size": 16, "devices": 4, "accumulate": 4, "sync_batch_norm": False},
            "one example, takes at most 2",
        ),
        ({"batch_size": 16, "devices": 4, "accumulate": 4}, ""),  # four examples, one a device
        (
            {"batch_size": 4, "devices": 1, "accumulate": 4, "encoder.norm": "group"}
            | {"projector.norm": "layer"},
            "",
        ),
    ],
)
def test_micro_batches_that_a_device_cannot_make(fields, words):
    config = config_of("quickstart", **fields)
    if words:
        line = line_of(program.pick_devices, config)
        assert line.startswith("accumulate: got") and words in line
    else:
        program.pick_devices(config)


@pytest.mark.parametrize(
    "name, check", [("quickstart", check_counts), ("supervised", check_supervised)]
)
@pytest.mark.parametrize("damaged", [False, True])
def test_event_files_without_the_package_that_writes_them(name, check, damaged, monkeypatch):
    package = ModuleType("tensorboardX") if damaged else None  # one without its messages
    for module in [m for m in sys.modules if m.startswith("tensorboardX.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboardX", package)
    check(config_of(name))
    line = line_of(check, config_of(name, tensorboard=True))
    assert line.startswith("tensorboard: got True, which takes the package tensorboardX")
    assert "pip install 'ssl-jax[tensorboard]'" in line


# --- Numbers --------------------------------------------------------------------------------------

# What each kind of number may be: (the next that it may not be, the least that it may) at either
# end.
COUNT, NUMBER_FROM_0, WHOLE_FROM_0 = ((0, 1), None), ((-1e-9, 0.0), None), ((-1, 0), None)
POSITIVE, SHARE = ((0.0, 1e-12), None), ((-1e-9, 0.0), (1 + 1e-9, 1.0))
SEED = ((-1, 0), (2**32, 2**32 - 1))  # of jax.random.key and NumPy's default_rng, as both take it
KINDS = {
    "pretraining": {
        "seed": SEED,
        "epochs": COUNT,
        "batch_size": ((1, 2), None),  # BatchNorm has no variance of one example
        "accumulate": COUNT,
        "log_every": COUNT,
        "dynamics.every": WHOLE_FROM_0,
        "eval_every": WHOLE_FROM_0,
        "checkpoint_every": WHOLE_FROM_0,
        "loss_scale": POSITIVE,
        "data.train_size": WHOLE_FROM_0,
        "data.image_size": ((-1, 0), (1025, 1024)),
        "data.test_share": ((-1e-9, 0.0), (0.9 + 1e-9, 0.9)),
        "encoder.width": COUNT,
        "encoder.depth": ((-1, 0), (10_001, 10_000)),
        "projector.hidden": COUNT,
        "predictor.hidden": COUNT,
        "predictor.every": COUNT,
        "predictor.phase": WHOLE_FROM_0,
        "predictor.eps": SHARE,
        "optimizer.learning_rate": NUMBER_FROM_0,
        "optimizer.weight_decay": NUMBER_FROM_0,
        "optimizer.clip_value": NUMBER_FROM_0,
        "optimizer.clip_norm": NUMBER_FROM_0,
        "schedule.every": POSITIVE,
        "schedule.cycle": POSITIVE,
        "optimizer.predictor.learning_rate": NUMBER_FROM_0,
        "optimizer.predictor.weight_decay": NUMBER_FROM_0,
        "schedule.warmup_epochs": NUMBER_FROM_0,
    },
    "probe": {
        "probe.epochs": WHOLE_FROM_0,
        "probe.seed": SEED,
        "probe.newton_l2": NUMBER_FROM_0,
        "probe.newton_steps": COUNT,
        "probe.knn_k": COUNT,
        "probe.knn_temperature": POSITIVE,
        "probe.validation_size": COUNT,
        "probe.few_labels": WHOLE_FROM_0,
        "probe.few_label_draws": COUNT,
    },
    "supervised": {
        "data.validation_size": WHOLE_FROM_0,
        "data.random_labels": SHARE,
        "data.labelled_share": ((0.0, 1e-12), (1 + 1e-9, 1.0)),
        "augment.consistency": NUMBER_FROM_0,
        "plateau.patience": WHOLE_FROM_0,
        "plateau.factor": ((0.0, 1e-12), (1.0, 0.999)),
        "plateau.threshold": NUMBER_FROM_0,
        "plateau.cooldown": WHOLE_FROM_0,
        "plateau.smallest": SHARE,
        "stopping.patience": WHOLE_FROM_0,
        "stopping.threshold": NUMBER_FROM_0,
    },
}
TABLES = {"pretraining": RANGES, "probe": PROBE_RANGES, "supervised": SUPERVISED_RANGES}


def only(field: str, value) -> ConfigDict:
    """A configuration of a single field."""
    *sections, name = field.split(".")
    tree = {name: value}
    for section in reversed(sections):
        tree = {section: tree}
    return ConfigDict(tree)


@pytest.mark.parametrize("table", KINDS)
def test_every_field_of_a_range_is_known_here(table):
    assert set(TABLES[table]) == set(KINDS[table])


@pytest.mark.parametrize(
    "table, field", [(table, field) for table in KINDS for field in KINDS[table]]
)
def test_ends_of_a_range(table, field):
    (below, least), above = KINDS[table][field]
    refused, taken = [below, math.nan, math.inf, -math.inf], [least]
    if above:
        refused, taken = [*refused, above[0]], [*taken, above[1]]
    for value in taken:
        check_ranges(only(field, value), TABLES[table])
    for value in refused:
        line = line_of(check_ranges, only(field, value), TABLES[table])
        assert re.fullmatch(
            rf"{re.escape(field)}: got {re.escape(str(value))}, takes a number (of|from) .*", line
        )


@pytest.mark.parametrize(
    "check, name",
    [(check_counts, "quickstart"), (check_supervised, "supervised"), (check_probe, "probe")],
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_of_a_configuration_may_be_infinite(check, name, value):
    """Every field that takes a number, one at a time, set or not by default."""
    config = config_of(name)
    numbers = 0
    for field in flatten(config.to_dict()):
        *sections, last = field.split(".")
        section = config
        for each in sections:
            section = section[each]
        kind = section.get_type(last)
        if kind not in (float, tuple):
            continue
        numbers += 1
        given = (0.5, value) if kind is tuple else value
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({field: given})
        assert line_of(check, changed).startswith(f"{field}: got ")
    assert numbers > 1


@pytest.mark.parametrize("option", ["every", "cycle"])
def test_a_length_that_rounds_to_no_step(option):
    config = ConfigDict(
        {"schedule": {"name": {"every": "step", "cycle": "sgdr"}[option], "decay": "constant"}}
    )
    config.schedule[option] = 0.04
    line = line_of(schedule_options, config, config.schedule.name, 10)
    assert (
        line.startswith(f"schedule.{option}: got 0.04 epochs, which round to 0") and "0.1" in line
    )
    config.schedule[option] = 0.1
    assert schedule_options(config, config.schedule.name, 10) == {option: 1}


def test_more_steps_than_are_counted():
    config = ConfigDict(
        {"epochs": 2**31 // 390 + 1, "eval_every": 0, "checkpoint_every": 0, "log_every": 1}
    )
    assert "takes at most 5506368 of 390 steps each" in line_of(build_cadence, config, 390)
    config.epochs -= 1
    assert build_cadence(config, 390).total < 2**31


def test_the_words_of_a_range_name_its_ends():
    ranges = {"a.b": (1, math.inf), "c": (0, 1)}
    assert (
        line_of(check_ranges, only("a.b", 0), ranges) == "a.b: got 0, takes a number of at least 1"
    )
    assert line_of(check_ranges, only("c", 2.5), ranges) == "c: got 2.5, takes a number from 0 to 1"


def test_fields_that_are_absent_or_unset_are_not_looked_at():
    check_ranges(ConfigDict({"other": -1}), RANGES)
    check_ranges(ConfigDict({"optimizer": {"predictor": {"learning_rate": None}}}), RANGES)


# --- Whole configurations -------------------------------------------------------------------------

CHECKS = {"pretraining": check_counts, "probe": check_probe, "supervised": check_supervised}
CONFIG_OF = {"pretraining": "quickstart", "probe": "quickstart", "supervised": "supervised"}


@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_configuration_passes(name):
    assert CHECKS[name](config_of(CONFIG_OF[name])) is None


REFUSED = {
    "pretraining": {
        "epochs": (0, "epochs: got 0, takes a number of at least 1"),
        "loss": (
            "cosin",
            "loss: got 'cosin', did you mean 'cosine'? It takes: "
            "cosine, euclidean, iso_cosine, iso_euclidean",
        ),
        "probe.knn_k": (0, "probe.knn_k: got 0, takes a number of at least 1"),
    },
    "probe": {
        "probe.protocol": (
            "sead",
            "probe.protocol: got 'sead', did you mean 'seed'? It takes: both, original, seed",
        ),
        "probe.loss": (
            "hing",
            "probe.loss: got 'hing', did you mean 'hinge'? It takes: hinge, softmax, squared",
        ),
        "probe.newton_l2": (-1.0, "probe.newton_l2: got -1.0, takes a number of at least 0"),
    },
    "supervised": {
        "batch_size": (1, "batch_size: got 1, takes a number of at least 2"),
        "data.random_labels": (2.0, "data.random_labels: got 2.0, takes a number from 0 to 1"),
        "loss": (
            "softmx",
            "loss: got 'softmx', did you mean 'softmax'? It takes: hinge, softmax, squared",
        ),
        "data.labelled_share": (
            0.0,
            "data.labelled_share: got 0.0, takes a number from 1e-12 to 1",
        ),
    },
}


@pytest.mark.parametrize(
    "name, field", [(name, field) for name in REFUSED for field in REFUSED[name]]
)
def test_a_mistake_is_told_by_its_field(name, field):
    value, line = REFUSED[name][field]
    assert line_of(CHECKS[name], config_of(CONFIG_OF[name], **{field: value})) == line


@pytest.mark.parametrize("kind", ["direct_pred", "direct_copy"])
def test_what_is_written_down_is_not_made_symmetric(kind):
    fields = {"predictor.kind": kind, "predictor.symmetric": True}
    assert line_of(check_counts, config_of("quickstart", **fields)) == (
        f"predictor.symmetric: got True, takes False with predictor.kind {kind}: only mlp, linear "
        "can be made symmetric"
    )
    for learned in ("mlp", "linear"):
        check_counts(config_of("quickstart", **fields | {"predictor.kind": learned}))


@pytest.mark.parametrize(
    ("kind", "field", "value", "line"),
    [
        ("direct_pred", "power", 0.3, "takes 0.5 with predictor.kind direct_pred: only direct_set"),
        ("direct_copy", "norm", "trace", "takes 'max' with predictor.kind direct_copy: only"),
        ("linear", "centre", True, "only direct_pred, direct_copy, direct_set have it"),
        ("direct_set", "ridge", 0.3, "takes 0.01 with predictor.kind direct_set: only optimal"),
    ],
)
def test_a_field_of_another_kind_is_refused(kind, field, value, line):
    config = config_of("quickstart", **{"predictor.kind": kind, f"predictor.{field}": value})
    found = line_of(check_counts, config)
    assert found.startswith(f"predictor.{field}: got {value!r}, ") and line in found


@pytest.mark.parametrize(
    "fields", [{}, {"predictor.kind": "direct_pred", "predictor.every": 5}], ids=str
)
@pytest.mark.parametrize("loss", ["iso_cosine", "iso_euclidean"])
def test_a_loss_that_trains_no_predictor_takes_one_that_is_written_down(loss, fields):
    line = line_of(check_counts, config_of("quickstart", loss=loss, **fields))
    assert line.startswith(f"loss: got '{loss}', which gives a predictor no gradient")
    check_counts(config_of("quickstart", loss=loss, **{"predictor.kind": "direct_pred"}))


def test_a_probe_alone_does_not_look_at_the_training():
    check_probe(config_of("quickstart", epochs=0))


@pytest.mark.parametrize("section", ["plateau", "stopping"])
def test_what_watches_held_out_images_needs_some(section):
    config = config_of("supervised", **{f"{section}.patience": 3, "data.validation_size": 0})
    assert line_of(check_supervised, config) == (
        f"{section}.patience: got 3, which watches held-out training images: "
        f"set data.validation_size, which is 0, or {section}.watch=loss"
    )
    check_supervised(
        config_of(
            "supervised",
            **{f"{section}.patience": 3, "data.validation_size": 0, f"{section}.watch": "loss"},
        )
    )
    config.data.validation_size = 10
    check_supervised(config)


# --- Against the data -----------------------------------------------------------------------------


def made_dataset(count=40, side=8, channels=1, classes=3, rarest=4) -> Dataset:
    """Class 2 has `rarest` training images, the others share the rest."""
    label = np.concatenate([np.full(rarest, 2), np.arange(count - rarest) % (classes - 1)]).astype(
        np.int32
    )
    split = Split(np.zeros((count, side, side, channels), np.uint8), label)
    return Dataset("made", split, split, split, classes, ("a", "b", "c"))


def probe_fields(**fields) -> ConfigDict:
    return ConfigDict({"knn_k": 5, "few_labels": 0, "validation_size": 10} | fields)


def check_all_sizes(probe: ConfigDict, dataset: Dataset, held_out: int = 0) -> None:
    """Before the data is read, and after."""
    check_sizes(probe, dataset.description, held_out)
    check_few_labels(probe, dataset)


def test_sizes_at_their_limits_pass():
    data = made_dataset()
    check_all_sizes(probe_fields(knn_k=40), data)
    check_all_sizes(probe_fields(knn_k=30), data, 10)
    check_all_sizes(probe_fields(knn_k=1), data, 39)
    check_all_sizes(probe_fields(few_labels=4), data)


@pytest.mark.parametrize(
    "fields, held_out, line",
    [
        ({}, 40, "probe.validation_size: got 40, takes less than the 40 images"),
        ({}, 41, "probe.validation_size: got 41, takes less than the 40 images"),
        ({"knn_k": 41}, 0, "probe.knn_k: got 41, takes at most 40: 40 training images"),
        (
            {"knn_k": 31},
            10,
            (
                "probe.knn_k: got 31, takes at most 30: 40 training images less "
                "probe.validation_size 10"
            ),
        ),
        ({"few_labels": 5}, 0, "probe.few_labels: got 5, takes at most 4, as the rarest class has"),
    ],
)
def test_sizes_beyond_their_limits_are_refused(fields, held_out, line):
    assert line_of(check_all_sizes, probe_fields(**fields), made_dataset(), held_out) == line


def test_a_class_without_training_images_is_left_out(capsys):
    _warn_once.cache_clear()
    check_all_sizes(probe_fields(few_labels=1), made_dataset(rarest=0))
    line = "warning: made: no training image of 1 of 3 classes: 2 (c); "
    assert capsys.readouterr().err == f"{line}few-label draws leave them out\n"


def test_views_that_fit_the_images_pass():
    check_views(make_recipe("digits"), made_dataset().description)
    check_views(make_recipe("cifar"), made_dataset(channels=3).description)


@pytest.mark.parametrize(
    "recipe, fields, data, parts",
    [
        ("cifar", {}, {"channels": 1}, ["views.saturation", "takes 0 for images of 1 channel(s)"]),
        ("digits", {"gray": 0.5}, {"channels": 1}, ["views.gray: got 0.5"]),
        ("cifar", {}, {"channels": 4}, ["views.saturation"]),
        ("digits", {"mean": (0.1, 0.2)}, {"channels": 1}, ["views.mean", "(0.1, 0.2)"]),
        (
            "stl10",
            {},
            {"side": 4, "channels": 3},
            ["views.blur_kernel: got 9", "views of 4 pixels"],
        ),
    ],
)
def test_views_that_do_not_fit_the_images_are_refused(recipe, fields, data, parts):
    line = line_of(check_views, make_recipe(recipe, **fields), made_dataset(**data).description)
    assert all(part in line for part in parts), line


def test_views_are_held_against_the_images_of_pretraining():
    """Which may be more than those of training; the channels are theirs."""
    gray, coloured = made_dataset(), made_dataset(channels=3)
    check_views(make_recipe("cifar"), gray._replace(pretrain=coloured.pretrain).description)
    with pytest.raises(UserError, match="saturation"):
        check_views(make_recipe("cifar"), coloured._replace(pretrain=gray.pretrain).description)
