"""The benchmark beside PyTorch measures the same work, or nothing."""

import importlib
from pathlib import Path

import numpy as np
import pytest

# the warnings are PyTorch's and lightly's
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def peer(monkeypatch):
    for package in ("torch", "torchvision", "lightly"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("peer")


def test_both_sides_compute_the_same_losses(peer):
    losses = peer.check(peer.make_config(2, gpu=False))
    np.testing.assert_allclose(losses["ours"], losses["peer"], atol=1e-4)
    # the step has moved something
    assert losses["ours"][0] != pytest.approx(losses["ours"][1], abs=1e-3)


def test_nothing_is_measured_of_different_work(peer, monkeypatch):
    monkeypatch.setattr(
        peer,
        "update_momentum",
        lambda online, target, m: target.load_state_dict(online.state_dict()),
    )
    with pytest.raises(SystemExit, match=r"loss after 1 steps: ours .* peer .* not the same work"):
        peer.check(peer.make_config(2, gpu=False))


def test_the_decay_spares_what_ours_spares(peer):
    config = peer.make_config(2, gpu=False)
    model = peer.Byol(config, peer.fresh(config)[1])
    kept, spared = peer.make_sgd(model, config.optimizer).param_groups
    assert (kept["weight_decay"], spared["weight_decay"]) == (config.optimizer.weight_decay, 0.0)
    assert {id(p) for p in spared["params"]} == {
        id(head.layers[0].bias) for head in (model.trunk[1], model.predictor)
    }
