"""The configuration of a finished pretraining, read from its work directory."""

import json

import pytest

from ssl_jax.builders.trained_run import SECTIONS, read_trained
from ssl_jax.errors import UserError

SOUND = {"task": "pretrain", "method": "byol", "epochs": 3} | {
    name: {"kept": name} for name in SECTIONS
}


def write(folder, content) -> None:
    (folder / "config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def test_a_sound_configuration_is_read_whole(tmp_path):
    write(tmp_path, SOUND)
    config = read_trained(tmp_path)
    assert config.to_dict() == SOUND
    assert config.encoder.kept == "encoder"  # sections are configurations, not dictionaries


def test_every_section_that_a_pretraining_has_is_asked_for():
    expected = {
        "data",
        "views",
        "encoder",
        "projector",
        "predictor",
        "target",
        "optimizer",
        "schedule",
        "probe",
    }
    assert set(SECTIONS) == expected


WRONG = {
    "another task": (
        SOUND | {"task": "supervised"},
        "checkpoint: {} holds a 'supervised' task, takes a pretraining run",
    ),
    "no task": ({"method": "byol"}, "checkpoint: {} holds a None task, takes a pretraining run"),
    "no predictor and no probe": (
        {name: value for name, value in SOUND.items() if name not in ("predictor", "probe")},
        "{}/config.json: damaged, lacks predictor, probe",
    ),
    "a section that is none": (
        SOUND | {"encoder": "resnet18"},
        "{}/config.json: damaged, lacks encoder",
    ),
    "no JSON": ('{"task": "pret', "{}/config.json: damaged, not JSON"),
    "a list": ("[1, 2]", "{}/config.json: damaged, holds a list"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_pretraining_is_refused(kind, tmp_path):
    content, line = WRONG[kind]
    write(tmp_path, content)
    with pytest.raises(UserError) as refused:
        read_trained(tmp_path)
    assert str(refused.value).startswith(line.format(tmp_path))


def test_no_configuration_at_all(tmp_path):
    with pytest.raises(UserError, match="config.json: not found"):
        read_trained(tmp_path / "nowhere")
