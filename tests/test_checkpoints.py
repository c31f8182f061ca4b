"""Checkpoints come back whole, the right ones are kept, and damage is told in one line."""

import json
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.train.state import PretrainState
from ssl_jax.workdir import checkpoints

BEST = "knn_validation"


def make_state(seed=0, width=5):
    rng = np.random.default_rng(seed)

    def layer(*shape):
        return {"kernel": jnp.float32(rng.normal(size=shape))}

    params = {
        "encoder": {"conv": layer(3, width)},
        "projector": layer(width, 2),
        "predictor": layer(2, 2),
    }
    momentum = (jax.tree.map(jnp.negative, params), {"count": jnp.int32(seed)})
    stats = {"encoder": {"mean": layer(width)}}
    memory = {"correlation": layer(2, 2)["kernel"]}
    return PretrainState(
        jnp.int32(seed), params, stats, {"encoder": params["encoder"]}, momentum, memory
    )


def write(directory, scores):
    """A checkpoint for each (step, score or None)."""
    with checkpoints.open_manager(directory, BEST) as manager:
        for step, score in scores:
            checkpoints.save(
                manager, make_state(step), step, {} if score is None else {BEST: score}
            )


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, of steps 4 and 8."""
    write(tmp_path / "checkpoints", [(4, 0.5), (8, 0.7)])
    return tmp_path / "checkpoints"


def restore(directory, like):
    with checkpoints.open_manager(directory, BEST) as manager:
        return checkpoints.restore(manager, like)


def restore_as_dict(directory, like):
    return restore(directory, PretrainState(**like))._asdict()


def test_the_newest_comes_back_bit_for_bit(folder):
    state = restore(folder, make_state(0))
    assert isinstance(state, PretrainState)
    chex.assert_trees_all_equal(state, make_state(8))
    chex.assert_trees_all_equal_dtypes(state, make_state(8))
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "scores, kept",
    [
        ([0.9, 0.1, 0.2, 0.3], [1, 3, 4]),  # the best is older than the latest two
        ([0.1, 0.9, 0.3, 0.2], [2, 3, 4]),
        ([0.1, 0.2, 0.3, 0.9], [3, 4]),
        ([0.3, 0.2, 0.1, 0.0], [1, 3, 4]),  # the latest is the worst
        ([0.2, None, None, None], [1, 3, 4]),  # not every save is evaluated
        ([None, None, None, None], [3, 4]),
    ],
)
def test_latest_two_and_best_are_kept(tmp_path, scores, kept):
    write(tmp_path, enumerate(scores, start=1))
    assert checkpoints.steps_in(tmp_path) == kept


@pytest.mark.parametrize(
    "values, kept",
    [([-0.2, -3.0, -1.0, -0.5], [2, 3, 4]), ([2.0, 0.5, None, 1.0], [2, 3, 4])],
)
def test_a_score_may_turn_the_metric_round(tmp_path, values, kept):
    """The smallest value is the best here, of either sign; a step without one comes last."""
    for step, value in enumerate(values, start=1):  # a manager a step: the ranks survive restarts
        with checkpoints.open_manager(tmp_path, BEST, lambda value: -value) as manager:
            metrics = {} if value is None else {BEST: value}
            checkpoints.save(manager, make_state(step), step, metrics)
    assert checkpoints.steps_in(tmp_path) == kept


def test_the_best_survives_a_restart(tmp_path):
    for step, score in enumerate([0.9, 0.1, 0.2, 0.3], start=1):
        write(tmp_path, [(step, score)])
    assert checkpoints.steps_in(tmp_path) == [1, 3, 4]


def test_a_step_already_there_stays(folder):
    with checkpoints.open_manager(folder, BEST) as manager:
        checkpoints.save(manager, make_state(99), 8, {})
    chex.assert_trees_all_equal(restore(folder, make_state(0)), make_state(8))


def test_what_a_crash_left_half_written_is_swept_away(folder):
    (folder / "12.orbax-checkpoint-tmp-1700000000").mkdir()
    assert checkpoints.steps_in(folder) == [4, 8]
    chex.assert_trees_all_equal(restore(folder, make_state(0)), make_state(8))
    write(folder, [(12, 0.6)])
    assert sorted(p.name for p in folder.iterdir()) == ["12", "8"]


def test_parts_alone(folder):
    like = make_state(0)
    wanted = {"params": {"encoder": like.params["encoder"]}, "stats": like.stats}
    got, whole = checkpoints.restore_parts(folder, 4, wanted), make_state(4)
    chex.assert_trees_all_equal(
        got, {"params": {"encoder": whole.params["encoder"]}, "stats": whole.stats}
    )


def test_other_shapes_are_refused_by_name(folder):
    message = r"8: params/encoder/conv/kernel has shape \(3, 5\), this configuration needs \(3, 6\)"
    with pytest.raises(UserError, match=message):
        restore(folder, make_state(0, width=6))
    with pytest.raises(UserError, match=message):
        checkpoints.restore_parts(folder, 8, {"params": make_state(0, width=6).params})


def test_other_parameters_are_refused_by_name(folder):
    """Orbax would hand the fresh ones back, as if they had been saved."""
    state = make_state(0)
    other = state._replace(
        params=state.params | {"projector": {"weight": state.params["projector"]["kernel"]}}
    )
    with pytest.raises(UserError, match="/8: has no params/projector/weight"):
        restore(folder, other)
    with pytest.raises(UserError, match="/8: has no params/projector/weight"):
        checkpoints.restore_parts(folder, 8, {"params": other.params})


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_truncated_files_are_told_or_do_not_matter(folder, share, monkeypatch):
    """Every file in turn cut short: the state comes back right or not at all."""
    # put back what a failed read leaves changed
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    like, whole_state, refused = make_state(0)._asdict(), make_state(8)._asdict(), 0
    for path in sorted(p for p in (folder / "8").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        for read in (restore_as_dict, lambda d, like: checkpoints.restore_parts(d, 8, like)):
            try:
                chex.assert_trees_all_equal(read(folder, like), whole_state)
            except UserError as error:
                assert str(error).startswith(f"{folder}") and "delete" in str(error)
                refused += 1
        path.write_bytes(whole)
    assert refused >= 4


def test_without_a_checkpoint(tmp_path):
    with (
        pytest.raises(UserError, match="no checkpoint found"),
        checkpoints.open_manager(tmp_path, BEST) as manager,
    ):
        checkpoints.restore(manager, make_state())
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^{directory}: no checkpoint found"):
            checkpoints.steps_in(directory)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << position % 8
    path.write_bytes(content)


def test_flipped_bits_are_never_restored(folder, monkeypatch):
    """Bits of every file at random places: the state comes back right or not at all."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    rng, like, expected = np.random.default_rng(0), make_state(0)._asdict(), make_state(8)._asdict()
    told = 0
    for path in sorted(p for p in (folder / "8").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for position in rng.integers(0, max(len(whole), 1), 6):
            flip(path, int(position))
            try:
                chex.assert_trees_all_equal(restore_as_dict(folder, like), expected)
            except UserError as error:
                assert str(error).startswith(f"{folder}") and "\n" not in str(error)
                told += "delete" in str(error)
            path.write_bytes(whole)
    assert told > 10


def test_a_checkpoint_in_the_place_of_another(folder):
    (folder / "8").rename(folder / "9")
    with pytest.raises(UserError, match="9: is the checkpoint of step 8 under another name"):
        restore(folder, make_state(0))
    chex.assert_trees_all_equal(
        checkpoints.restore_parts(folder, 4, make_state(0)._asdict()), make_state(4)._asdict()
    )


def test_notes(tmp_path):
    with checkpoints.open_manager(tmp_path, BEST) as manager:
        checkpoints.save(manager, make_state(4), 4, {}, {"rows": "a,b\n", "devices": 2})
    assert checkpoints.read_notes(tmp_path, 4) == {"rows": "a,b\n", "devices": 2}


def test_metrics_and_notes_that_were_not_known_when_it_was_written(tmp_path):
    """With those of step 4 it is the best one, in this start and in the next."""
    with checkpoints.open_manager(tmp_path, BEST) as manager:
        checkpoints.save(manager, make_state(3), 3, {BEST: 0.1})
        checkpoints.save(manager, make_state(4), 4, {}, {"owed": {"step": 4}})
        checkpoints.finish(manager)
        checkpoints.complete(tmp_path, 4, {BEST: 0.9}, {"rows": "a"})
        manager.reload()
        assert checkpoints.read_notes(tmp_path, 4) == {"rows": "a"}
        chex.assert_trees_all_equal(checkpoints.restore(manager, make_state(0)), make_state(4))
        for step in (5, 6, 7):
            checkpoints.save(manager, make_state(step), step, {BEST: 0.2})
    assert (
        checkpoints.steps_in(tmp_path) == [4, 6, 7] and checkpoints.best_step(tmp_path, BEST) == 4
    )
    write(tmp_path, [(8, 0.3), (9, 0.3)])
    assert checkpoints.steps_in(tmp_path) == [4, 8, 9]


def test_a_checkpoint_without_a_manifest_is_taken(folder):
    """As earlier versions wrote them."""
    shutil.rmtree(folder / "8" / checkpoints.MANIFEST)
    assert checkpoints.read_notes(folder, 8) == {}
    chex.assert_trees_all_equal(restore(folder, make_state(0)), make_state(8))


def test_a_limit_on_the_size_of_files_is_one_line(tmp_path):
    """The write fails in a thread of TensorStore, long after `save` has returned."""
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from ssl_jax.errors import UserError
from ssl_jax.workdir import checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
noise = np.random.default_rng(0).normal(size=2**17)
try:
    with checkpoints.open_manager(Path(sys.argv[1]), "accuracy") as manager:
        checkpoints.save(manager, {"w": noise}, 1, {})
        checkpoints.finish(manager)
except UserError as error:
    print(error)
"""
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert not done.stderr and done.stdout.count("\n") == 1, done
    assert "cannot be written (File too large)" in done.stdout


def test_a_changed_note_is_told(folder):
    """A manifest is JSON, in which a flipped bit may be a number like any other."""
    with checkpoints.open_manager(folder, BEST) as manager:
        checkpoints.save(manager, make_state(12), 12, {}, {"rows": "1,2"})
    path = folder / "12" / checkpoints.MANIFEST / "metadata"
    path.write_text(path.read_text().replace("1,2", "1,3"))
    with pytest.raises(UserError, match="metadata: damaged .its bits changed.; delete"):
        checkpoints.read_notes(folder, 12)


def test_an_array_that_the_manifest_does_not_know_is_refused(folder):
    path = folder / "8" / checkpoints.MANIFEST / "metadata"
    manifest = json.loads(path.read_text())
    del manifest["arrays"]["step"], manifest["digest"]
    path.write_text(json.dumps(manifest | {"digest": checkpoints._digest_of_json(manifest)}))
    with pytest.raises(UserError, match="8: step is not what was saved"):
        restore(folder, make_state(0))
