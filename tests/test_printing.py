"""What a training run and a probe print: golden text of constructed runs."""

from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from ssl_jax.builders.optimizer import Layer
from ssl_jax.tasks.printing import print_accuracies, print_layers, print_training
from ssl_jax.train.loop import Cadence


def run_config(**fields) -> ConfigDict:
    known = {"method": "byol", "batch_size": 64, "epochs": 3, "seed": 7, "precision": "float32"}
    return ConfigDict(known | {"sync_batch_norm": True, "accumulate": 1} | fields)


DEVICES = [SimpleNamespace(device_kind="Abacus")] * 2


def test_print_training(capsys):
    print_training(run_config(), "digits", 1297, DEVICES, Cadence(60, 20, 60, 60), 0)
    assert capsys.readouterr().out.splitlines() == [
        "byol on digits: 1297 images, batch 64",
        "60 steps (3 epochs), seed 7, float32",
        "2 x Abacus; BatchNorm statistics: over all devices",
    ]


def test_print_training_in_micro_batches(capsys):
    print_training(run_config(accumulate=4), "digits", 1297, DEVICES, Cadence(60, 20, 60, 60), 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", batch 64 in 4 micro-batches")
    assert lines[2].endswith(": over all devices, of each micro-batch")


def test_print_training_of_several_processes_that_go_on(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda *backend: 3)
    config = run_config(sync_batch_norm=False, precision="bfloat16")
    print_training(config, "digits", 1297, DEVICES, Cadence(60, 20, 60, 60), 40)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "60 steps (3 epochs), seed 7, bfloat16",
        "6 x Abacus; BatchNorm statistics: each device its own",
        "going on from step 40",
    ]


LAYERS = [
    Layer(1, "encoder/conv1", 1728, 1728, 0.5, 2e-4, 0.03),
    Layer(2, "predictor/linear1", 66_048, 65_536, 1.5, 6e-4, 0.3),
]


@pytest.mark.parametrize("layerwise, words", [("", "alike"), ("mean", "mean")])
def test_print_layers(layerwise, words, capsys):
    optimizer = ConfigDict(
        {"name": "momentum", "decay": "realtime", "decay_scale": "lr", "layerwise": layerwise}
    )
    print_layers(LAYERS, optimizer)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"momentum, realtime decay, scale lr, layers {words}"
    assert [line.split() for line in said[1:]] == [
        ["layer", "parameters", "decayed", "factor", "weight", "decay", "rate"],
        ["1", "encoder/conv1", "1,728", "1,728", "0.500", "0.0002", "0.03"],
        ["2", "predictor/linear1", "66,048", "65,536", "1.500", "0.0006", "0.3"],
        ["in", "all", "67,776", "67,264"],
    ]
    # Each number ends below the end of its heading.
    ends = [
        said[1].index(word) + len(word)
        for word in ("parameters", "decayed", "factor", "weight decay", "rate")
    ]
    for line, numbers in ((said[2], LAYERS[0]), (said[3], LAYERS[1])):
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for end in ends), (
            numbers
        )
    assert all(said[4][end - 1] != " " for end in ends[:2]) and len(said[4]) == ends[1]


ACCURACIES = {
    "task": "probe",
    "linear_accuracy": 0.91236,
    "knn_accuracy": 0.5,
    "random_init_linear_accuracy": 0.7,
    "ridge_accuracy": 1.0,
}


def test_print_accuracies(capsys):
    print_accuracies(ACCURACIES)
    assert capsys.readouterr().out.splitlines() == [
        "linear_accuracy                    0.9124   untrained encoder 0.7000",
        "knn_accuracy                       0.5000",
        "ridge_accuracy                     1.0000",
    ]


def test_print_accuracies_of_few_labels(capsys):
    table = {"labels_per_class": 10, "draws": 20, "pretrained": {"mean": 0.93126, "std": 0.01004}}
    table |= {"raw_pixels": {"mean": 0.9, "std": 0.0}}
    print_accuracies({"few_label": table})
    assert capsys.readouterr().out.splitlines() == [
        "10 labels a class, pretrained   0.9313 ± 0.0100 over 20 draws",
        "10 labels a class, raw_pixels   0.9000 ± 0.0000 over 20 draws",
    ]


def test_print_accuracies_of_a_single_draw_of_labels(capsys):
    """One draw has no deviation, and `few_labels` says so by None."""
    table = {"labels_per_class": 10, "draws": 1, "pretrained": {"mean": 0.93126, "std": None}}
    print_accuracies({"few_label": table})
    assert capsys.readouterr().out.splitlines() == [
        "10 labels a class, pretrained   0.9313 over 1 draw"
    ]
