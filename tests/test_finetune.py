"""configs/finetune.py: what fine-tuning takes over from the run that it starts from."""

import pytest
from test_weights import config_of, pretrain_state, save_run, supervised_state

from configs import finetune
from ssl_jax.builders.weights import find_weights
from ssl_jax.errors import UserError


def test_a_pretraining_run_gives_data_encoder_and_normalisation(tmp_path):
    own = {
        "data.damaged": "skip",
        "data.image_size": 16,
        "encoder.norm": "group",
        "precision": "bfloat16",
        "probe.validation_size": 123,
        "views.flip": 0.25,
        "views.mean": (0.4,),
        "views.std": (0.2,),
    }
    parent = config_of("quickstart", **own)
    run = save_run(tmp_path / "parent", parent, pretrain_state(parent, 0))
    config = finetune.get_config(str(run))
    assert config.encoder == parent.encoder
    assert {name: config.data[name] for name in parent.data} == dict(parent.data)
    assert config.data.validation_size == 123 and config.precision == "bfloat16"
    assert config.augment.mean == (0.4,) and config.augment.std == (0.2,)
    assert config.augment.flip == 0.25
    assert find_weights(config, tmp_path / "new").path == run


def test_a_supervised_run_gives_its_own_held_out_images(tmp_path):
    own = {"data.validation_size": 50, "data.labelled_share": 0.5, "augment.flip": 0.1}
    parent = config_of("supervised", "convnet", **own)
    run = save_run(tmp_path / "parent", parent, supervised_state(parent, 0))
    config = finetune.get_config(str(run))
    assert config.data == parent.data and config.encoder == parent.encoder
    assert config.augment == parent.augment
    assert find_weights(config, tmp_path / "new").path == run


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "config.json: not found; expected a work directory"),
        ('{"task": "probe"}', "is no run of pretrain or supervised; takes the work directory"),
        ("{", "config.json: damaged, not JSON"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, content, line):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=line):
        finetune.get_config(str(tmp_path))
