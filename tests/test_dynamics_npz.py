"""dynamics.npz: written whole, cut back, and read as far as it is sound."""

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.workdir.dynamics_npz import (
    NAME,
    digest,
    read_dynamics,
    resume_dynamics,
    write_dynamics,
)

STEPS = (0, 10, 20, 25)


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    full = [
        {
            "step": np.int64(n),
            "epoch": np.float32(n / 10),
            "alignment": rng.normal(size=5),
            "loss": rng.normal(),
        }
        for n in STEPS
    ]
    return [{name: full[0][name] for name in ("step", "epoch")}, *full[1:]]


@pytest.fixture
def folder(tmp_path, records):
    write_dynamics(tmp_path, records)
    return tmp_path


def test_round_trip_with_nan_where_a_record_has_nothing(folder, records):
    found = read_dynamics(folder)
    assert found["step"].tolist() == list(STEPS) and found["step"].dtype == np.float64
    assert (
        found["alignment"].shape == (4, 5)
        and np.isnan(found["alignment"][0]).all()
        and np.isnan(found["loss"][0])
    )
    expected = np.float32([r["alignment"] for r in records[1:]])
    np.testing.assert_array_equal(found["alignment"][1:], expected)
    assert [p.name for p in folder.iterdir()] == [NAME]


@pytest.mark.parametrize("step, kept", [(0, 1), (19, 2), (20, 3), (25, 4), (99, 4)])
def test_a_run_goes_on_from_the_records_up_to_its_step(folder, step, kept):
    found = resume_dynamics(folder, step)
    assert [int(record["step"]) for record in found] == list(STEPS[:kept])
    write_dynamics(folder, found)
    assert len(read_dynamics(folder)["step"]) == kept


def test_nothing_recorded(tmp_path):
    assert resume_dynamics(tmp_path, 9) == []
    with pytest.raises(UserError, match="dynamics.every"):
        read_dynamics(tmp_path)


def spoil(folder, name):
    """Turns one byte of the array `name` over, as a bad disk would."""
    path = folder / NAME
    content = bytearray(path.read_bytes())
    at = content.index(f"{name}.npy".encode()) + 150  # past the headers, among the numbers
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_array_is_left_out_and_said(folder, capsys):
    spoil(folder, "alignment")
    found = read_dynamics(folder)
    assert found.keys() == {"step", "epoch", "loss"}
    error = capsys.readouterr().err
    assert "alignment" in error and "loss" not in error and error.count("\n") == 1


def test_damaged_steps_or_a_cut_file_cannot_be_read(folder):
    spoil(folder, "step")
    with pytest.raises(UserError, match="steps cannot be read"):
        read_dynamics(folder)
    content = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="steps cannot be read"):
        read_dynamics(folder)
    (folder / NAME).write_bytes(b"")
    with pytest.raises(UserError, match="steps cannot be read"):
        read_dynamics(folder)


def test_a_run_that_goes_on_keeps_the_damaged_file_beside(folder, capsys):
    spoil(folder, "alignment")
    before = (folder / NAME).read_bytes()
    found = resume_dynamics(folder, 20)
    assert [record.keys() for record in found] == [{"step", "epoch", "loss"}] * 3
    assert (folder / "dynamics.damaged.npz").read_bytes() == before
    assert "kept as dynamics.damaged.npz" in capsys.readouterr().err


def test_arrays_of_another_length_are_left_out(folder, capsys):
    with np.load(folder / NAME) as file:
        arrays = dict(file)
    np.savez(folder / NAME, **arrays | {"epoch": arrays["epoch"][:-1]})
    assert "epoch" not in read_dynamics(folder)
    assert "epoch" in capsys.readouterr().err


def test_the_records_of_another_run_are_not_taken(folder, records, capsys):
    kept = digest(records[:3])
    assert len(resume_dynamics(folder, 20, kept)) == 3 and capsys.readouterr().err == ""
    records[1]["loss"] = np.float32(records[1]["loss"]) + 1
    write_dynamics(folder, records)
    assert resume_dynamics(folder, 20, kept) == []
    assert "has other records" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["dynamics.damaged.npz"]
    assert resume_dynamics(folder, 20, kept) == [] and "not found" in capsys.readouterr().err


def test_the_digest_knows_every_number_and_not_what_comes_later(records):
    base = digest(records[:2])
    assert base == digest([record | {"later": np.nan} for record in records[:2]])
    for name in ("step", "epoch", "alignment", "loss"):
        other = [records[0], records[1] | {name: records[1][name] + 1}]
        assert digest(other) != base, name


@pytest.mark.parametrize(
    "name, shape",
    [("alignment", (4,)), ("alignment", (4, 0)), ("loss", (4, 2)), ("parameter_norm", (4,))],
)
def test_an_array_of_another_shape_is_left_out(tmp_path, capsys, name, shape):
    np.savez(tmp_path / NAME, step=np.array(STEPS), **{name: np.zeros(shape)})
    assert read_dynamics(tmp_path).keys() == {"step"} and name in capsys.readouterr().err
