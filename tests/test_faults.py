"""A sample of the attacks in `faults`; `python -m tests.faults` runs all of them."""

import pytest
from faults import given, stops, stored, system  # noqa: F401
from faults.suite import GROUPS, Base, Trial, attempt, sample, trials

from ssl_jax.errors import UserError
from ssl_jax.workdir import checkpoints


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", [name for name, group in GROUPS.items() if group.quick])
@pytest.mark.slow
def test_a_sample_of_each_group_survives(name, base, tmp_path):
    outcomes = [attempt(trial, base, tmp_path / str(i)) for i, trial in enumerate(sample(name))]
    assert len(outcomes) == GROUPS[name].quick
    assert not [outcome[1:] + outcome.trial[:2] for outcome in outcomes if not outcome.survived]


def test_there_are_as_many_as_the_documents_say():
    assert sum(len(trials(name)) for name in GROUPS) >= 900
    for name in GROUPS:
        names = [trial.name for trial in trials(name)]
        assert names == [trial.name for trial in trials(name)], "another seed, another suite"


def write_outside(place):
    (place.outside / "new").write_text("x")


def refuse(place):
    raise UserError("field: got this, takes that")


def refuse_at_length(place):
    raise UserError("a line\nand another")


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack, kind",
    [
        (lambda place: None, "right"),
        (refuse, "one line"),
        (refuse_at_length, "wrong"),
        (lambda place: 1 / 0, "raised"),
        (write_outside, "outside"),
    ],
)
def test_what_counts_as_surviving(attack, kind, base, tmp_path):
    outcome = attempt(Trial("group", "name", attack), base, tmp_path / "trial")
    assert outcome.kind == kind and outcome.survived == (kind in ("right", "one line"))
    assert not (tmp_path / "trial").exists()


@pytest.mark.slow
def test_a_reader_that_takes_a_flipped_bit_does_not_survive(base, tmp_path, monkeypatch):
    """Without the manifest's digests Orbax hands the wrong numbers out, as if nothing were."""
    monkeypatch.setattr(checkpoints, "_read_manifest", lambda folder: {})
    chosen = [trial for trial in trials("checkpoint") if trial.name.startswith("flip")][:40]
    kinds = {attempt(trial, base, tmp_path / str(i)).kind for i, trial in enumerate(chosen)}
    assert "wrong" in kinds
