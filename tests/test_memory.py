"""What no machine holds is one line before anything is allocated, or when memory runs out."""

import errno
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from ssl_jax.builders import program
from ssl_jax.errors import UserError
from ssl_jax.runtime import memory
from ssl_jax.tasks import registry

CONFIGS = Path(__file__).parent.parent / "configs"


def settings(**fields):
    config = runpy.run_path(str(CONFIGS / "quickstart.py"))["get_config"]()
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    "field", ["encoder.width", "projector.hidden", "projector.out", "predictor.hidden"]
)
def test_widths_that_no_machine_holds(field, tmp_path):
    with pytest.raises(
        UserError, match=f"{field} \\(got 1000000000\\).* and this machine has "
    ) as caught:
        registry.run_task(settings(**{field: 10**9}), str(tmp_path / "run"), lambda: False)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["batch_size", "encoder.depth", "data.image_size"])
def test_other_numbers_that_no_machine_holds(field, tmp_path):
    with pytest.raises(UserError, match=f"^{field}: got 1000000000, takes "):
        registry.run_task(settings(**{field: 10**9}), str(tmp_path / "run"), lambda: False)
    assert not list(tmp_path.iterdir())


class Device:
    """A GPU of one billion bytes."""

    platform, device_kind = "gpu", "small"

    def memory_stats(self):
        return {"bytes_limit": 10**9}


class Init:
    """An initialisation whose parameters have `count` float32 numbers, and nothing else."""

    def __init__(self, count: int):
        encoder = jax.ShapeDtypeStruct((count,), np.float32)
        state = type("State", (tuple,), {"params": {"encoder": encoder}})((encoder,))
        self.out_info = jax.tree_util.Partial(print, encoder)
        self.out_info.params = state.params

    def trace(self, key):
        return self


def test_the_limit_is_the_device_and_counts_the_gradient():
    """4 bytes a number, once as the parameter and once as its gradient."""
    program.check_memory(settings(), Init(10**9 // 8), [Device()])
    with pytest.raises(UserError, match=r"encoder.width.* need 1 GB, .*\(small\) has 1 GB"):
        program.check_memory(settings(), Init(10**9 // 8 + 1), [Device()])


def test_the_devices_of_a_cpu_share_the_host(monkeypatch):
    monkeypatch.setattr(program, "host_memory", lambda: 10**6)
    devices = jax.local_devices()
    assert len(devices) == 4
    program.check_memory(settings(), Init(10**6 // 32), devices)
    with pytest.raises(UserError):
        program.check_memory(settings(), Init(10**6 // 32 + 1), devices)
    monkeypatch.setattr(program, "host_memory", lambda: None)
    program.check_memory(settings(), Init(10**15), devices)


def test_the_host_has_at_most_what_its_container_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", ())
    whole = memory.host_memory()
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert whole == total
    for text, expected in (("max\n", whole), ("1000\n", 1000), (f"{2**62}\n", whole)):
        (tmp_path / "limit").write_text(text)
        monkeypatch.setattr(memory, "CONTAINER", (str(tmp_path / "limit"), str(tmp_path / "no")))
        assert memory.host_memory() == expected


def exhausted():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 1 bytes")


def refuse(error: Exception):
    raise error


LACKS = {
    "of a device": exhausted,
    "of the host": lambda: refuse(MemoryError("Unable to allocate 1 EiB")),
    "without a word": lambda: refuse(MemoryError()),
    "of NumPy": lambda: np.zeros(2**59, np.float64),
    "of the system": lambda: refuse(OSError(errno.ENOMEM, "Cannot allocate memory")),
    "for a library": lambda: refuse(ImportError("x.so: failed to map segment from shared object")),
    "for a thread": lambda: refuse(RuntimeError("can't start new thread")),
    "of XLA on a CPU": lambda: jax.device_put(0.0) + jax.numpy.zeros((2**30, 2**24), np.uint8),
}


@pytest.mark.parametrize("lack", LACKS.values(), ids=LACKS)
def test_a_lack_of_memory_is_one_line_with_the_fields_that_help(lack):
    fields = {"batch_size": 128, "encoder.width": 64, "seed": 0}
    with pytest.raises(UserError) as caught, memory.reporting_out_of_memory(fields):
        lack()
    message = str(caught.value)
    assert message.startswith("out of memory (") and "\n" not in message
    assert "batch_size (got 128), encoder.width (got 64) so" in message and "seed" not in message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED"),
        OSError(errno.ENOSPC, "full"),
        KeyError("x"),
        ImportError("No module named 'x'"),
        RuntimeError("dictionary changed size"),
    ],
)
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as caught, memory.reporting_out_of_memory({}):
        raise error
    assert caught.value is error


def test_every_task_reports_it(tmp_path, monkeypatch):
    config = settings()
    broken = registry.TASKS["pretrain"]._replace(run=lambda *_: exhausted())
    monkeypatch.setitem(registry.TASKS, "pretrain", broken)
    with pytest.raises(UserError, match="out of memory .*batch_size"):
        registry.run_task(config, str(tmp_path / "run"), lambda: False)
