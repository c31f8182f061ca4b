"""The task export: every file is read back as its readers do, and holds the encoder of the run."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from commands import ROOT, TINY
from safetensors.numpy import load_file, save_file
from test_convnext import draw_file as convnext_file
from test_swin import DEPTHS as SWIN_DEPTHS
from test_swin import draw_file as swin_file
from test_timm_weights import resnet_file

import ssl_jax
from configs import quickstart, supervised
from ssl_jax import launch
from ssl_jax.augment.views import Recipe, evaluation_view
from ssl_jax.builders.trained_run import step_of
from ssl_jax.errors import UserError
from ssl_jax.export import card, pytorch, stablehlo
from ssl_jax.models import load_weights, make_encoder, to_arrays
from ssl_jax.models.cpu import native
from ssl_jax.tasks import export as task
from ssl_jax.workdir.directory import read_json, write_json

SMALL = dict(word.removeprefix("--config.").split("=") for word in TINY) | {"eval_every": 1}
MLP = {"encoder.name": "mlp", "encoder.depth": 2, "encoder.width": 16, "encoder.norm": "batch"}
FILES = {"config.json", "model.safetensors", "encoder.stablehlo", "card.md"}
FILES |= {"result.json", "provenance.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of eight steps on the digits; an MLP compiles quickly."""
    fields = SMALL | MLP | {"epochs": 2}
    return ssl_jax.train("quickstart", tmp_path_factory.mktemp("run") / "W", **fields)


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    """The folder of its export."""
    folder = tmp_path_factory.mktemp("export") / "out"
    ssl_jax.train("export", folder, checkpoint=str(run.workdir), license="apache-2.0")
    return folder


@pytest.fixture
def copy(out, tmp_path):
    return Path(shutil.copytree(out, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images_of(shape, count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def variables_of(encoder, image, seed=0):
    """Random parameters, and running statistics of which none is 0 or 1; nothing is compiled."""
    batch = jnp.zeros((2, *image))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale", "gamma"):
            return np.float32(rng.uniform(0.3, 1.5, leaf.shape))
        scale = 1 / np.sqrt(max(1, leaf.size // leaf.shape[-1])) if name == "kernel" else 0.3
        return np.float32(scale * rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


# --- What the task leaves behind ------------------------------------------------------------------


def test_the_folder_is_what_result_json_says(run, out):
    result = read_json(out / "result.json")
    assert {p.name for p in out.iterdir()} == FILES
    assert set(result["files"]) == FILES - {"result.json", "provenance.json"}
    for name, about in result["files"].items():
        content = (out / name).read_bytes()
        assert about == {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    assert (result["task"], result["steps"], result["dataset"]) == ("export", 8, "digits")
    apart = result["differences"]
    assert apart["arrays"] == 0 and apart["stablehlo"] < 1e-5 * max(1, result["largest_feature"])
    assert apart["pytorch"] is None and apart["pytorch_why"] == "PyTorch has no such module"


@pytest.mark.parametrize("count", [1, 3, 17])
def test_the_program_gives_the_features_of_the_run(run, out, count):
    images = images_of((8, 8, 1), count)
    program = jax.export.deserialize(bytearray((out / "encoder.stablehlo").read_bytes()))
    expected = run.encoder()(images)
    assert expected.shape == (count, 16) and np.ptp(expected) > 0.1
    np.testing.assert_allclose(program.call(images), expected, rtol=0, atol=1e-5)


def test_the_weights_are_those_of_the_checkpoint(run, out):
    held = load_file(out / "model.safetensors")
    variables = run.encoder()._apply.args[0]
    assert len(held) == len(jax.tree.leaves(variables)) and "linear2.kernel" in held
    np.testing.assert_array_equal(held["linear2.kernel"], variables["params"]["linear2"]["kernel"])
    mean = variables["batch_stats"]["norm2"]["batch"]["mean"]
    np.testing.assert_array_equal(held["norm2.batch.mean"], mean)
    assert np.any(mean)


def test_another_checkpoint_is_another_encoder(run, tmp_path):
    step = run.steps[0]
    ssl_jax.train("export", tmp_path / "out", checkpoint=str(run.workdir), step=step)
    result = read_json(tmp_path / "out" / "result.json")
    assert result["steps"] == step != 8 and f"--config.step={step}" in result["command"]
    held = load_file(tmp_path / "out" / "model.safetensors")["linear1.kernel"]
    np.testing.assert_array_equal(
        held, run.encoder(step)._apply.args[0]["params"]["linear1"]["kernel"]
    )
    text = (tmp_path / "out" / "card.md").read_text()
    assert f"| step | {step} of 8 |" in text and "linear_accuracy" not in text


def test_the_same_command_again_writes_the_same(run, out, copy):
    for name in ("model.safetensors", "card.md"):
        (copy / name).unlink()
    before = contents(copy)
    ssl_jax.train("export", copy, checkpoint=str(run.workdir), license="apache-2.0")
    after = contents(copy)
    assert set(after) == FILES
    assert after["model.safetensors"] == contents(out)["model.safetensors"]
    for name in ("config.json", "encoder.stablehlo"):
        assert after[name] == before[name]


def test_nothing_is_written_through_a_link(run, copy, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in FILES:
        if name != "config.json":
            (copy / name).unlink()
            (copy / name).symlink_to(tmp_path / "mine")
    ssl_jax.train("export", copy, checkpoint=str(run.workdir), license="apache-2.0")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not any((copy / name).is_symlink() for name in FILES)


# --- A user's mistakes ----------------------------------------------------------------------------

MISTAKES = {
    "nothing named": ({"checkpoint": ""}, "checkpoint: got ''"),
    "no run": ({"checkpoint": "nowhere"}, "nowhere/config.json: not found"),
    "an export": ({"checkpoint": "out"}, "task: got 'export', takes 'pretrain'"),
    "no such step": ({"step": "5"}, "step: got 5, .* has .*8; takes one of them, newest"),
    "no step at all": ({"step": "bset"}, "step: got 'bset', takes newest, best or the number"),
    "a fraction": ({"step": "1.5"}, "step: got '1.5', takes newest"),
    "a sentence": ({"license": "do what you want"}, "license: got 'do what you want', takes"),
    "a URL": ({"checkpoint": "gs://bucket/run"}, "checkpoint: got the URL"),
}


def refusal(capfd, folder, run, out, **fields) -> str:
    """The one line of the command; nothing that is there changes."""
    fields = {"checkpoint": str(run.workdir)} | fields
    if fields["checkpoint"] in ("out", "nowhere"):
        fields["checkpoint"] = str(out.parent / fields["checkpoint"])
    before = contents(out.parent) | contents(run.workdir)
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    capfd.readouterr()
    assert launch.main(["launch.py", "--config=export", f"--workdir={folder}", *words]) == 2
    line = capfd.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1, line
    assert contents(out.parent) | contents(run.workdir) == before
    return line


@pytest.mark.parametrize("fields, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(fields, words, run, out, capfd, tmp_path):
    line = refusal(capfd, tmp_path / "new", run, out, **fields)
    assert re.search(words, line), line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"steps": "x"}, "steps: got 'x', takes a whole number"),
        ({"device": ["|"]}, "device: got "),
        ({"versions": [1]}, "versions: got "),
        ({"few_label": 3}, "few_label: got 3"),
        ({"few_label": {"labels_per_class": 1, "draws": 2, "pretrained": {}}}, "lacks .*mean"),
        ({"provenance": "x"}, "provenance: got 'x', takes a section"),
    ],
)
def test_a_result_of_something_else_is_refused(changes, words, run, out, capfd, tmp_path):
    copy = Path(shutil.copytree(run.workdir, tmp_path / "run"))
    content = read_json(copy / "result.json") | changes
    (copy / "result.json").write_text(json.dumps(content))
    line = refusal(capfd, tmp_path / "new", run, out, checkpoint=copy)
    assert re.search(f"result.json: damaged, .*{words}", line), line
    assert not (tmp_path / "new").exists()


def test_foreign_provenance_is_left_out(run, tmp_path):
    copy = Path(shutil.copytree(run.workdir, tmp_path / "run"))
    (copy / "provenance.json").unlink()
    origin = {"parents": "abc", "command": "ssl-jax mine", "commit": 3}
    content = read_json(copy / "result.json") | {"provenance": origin}
    (copy / "result.json").write_text(json.dumps(content))
    ssl_jax.train("export", tmp_path / "out", checkpoint=str(copy))
    text = (tmp_path / "out/card.md").read_text()
    assert "| trained by | `ssl-jax mine` |" in text and "commit of ssl_jax" not in text


def test_a_folder_of_something_else_is_refused(run, out, capfd, tmp_path):
    line = refusal(capfd, run.workdir, run, out)
    assert f"--workdir: got {run.workdir}, the run itself; takes a folder of its own" in line
    (tmp_path / "link").symlink_to(run.workdir)
    assert "the run itself" in refusal(capfd, tmp_path / "link", run, out)
    assert "take another directory" in refusal(capfd, out, run, out, step=run.steps[0])
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    line = refusal(capfd, other, run, out)
    assert "'thesis.tex', which no export wrote; takes a new or an empty folder" in line
    (other / "thesis.tex").unlink()
    write_json(other / "config.json", {"architecture": "resnet18"})
    assert "'config.json', which no export wrote" in refusal(capfd, other, run, out)
    write_json(other / "config.json", {"task": "probe"})
    assert "holds the task 'probe', not 'export'" in refusal(capfd, other, run, out)
    assert {p.name for p in other.iterdir()} == {"config.json"}


def test_which_step_a_text_names():
    assert [step_of(t) for t in ("newest", "-1", "best", "0", "12")] == [-1, -1, "best", 0, 12]


# --- What a damaged disk, or a defect here, would look like ---------------------------------------


def test_changed_weights_are_found(run, copy):
    held = load_file(copy / "model.safetensors")
    held["linear1.kernel"].view(np.uint32).flat[3] ^= 1
    save_file(held, copy / "model.safetensors")
    variables = run.encoder()._apply.args[0]
    state = (variables["params"], variables["batch_stats"])
    with pytest.raises(UserError, match="model.safetensors: its arrays are not those of the run"):
        task.arrays_apart(copy, run.checkpoint(), state)


@pytest.mark.parametrize("found", [np.nan, 1.1e-4, np.inf])
def test_a_difference_that_is_no_rounding_is_refused(found):
    with pytest.raises(UserError, match="f: read by timm, its features differ .* do not use it"):
        task.report(Path("f"), "timm", found, 1e-4)


def test_features_apart():
    a = np.float32([[1, 2], [3, 4]])
    assert task.apart(a, a - np.float32([[0, 0.5], [0.25, 0]])) == 0.5
    assert task.apart(a[:1], a) == np.inf and np.isnan(task.apart(a * np.nan, a))


# --- Names and layouts: the files are written by other tests, which know timm's names -------------

HELD = {
    "resnet18": (resnet_file, ((2, 2, 2, 2), 4, 5), {"width": 4, "stem": "imagenet"}),
    "resnet34": (resnet_file, ((3, 4, 6, 3), 4, 5), {"width": 4, "stem": "imagenet"}),
    "convnext_tiny": (convnext_file, ((1, 1, 3, 1), 4, 5), {"width": 4, "depth": 1}),
    "swin_tiny": (swin_file, ((8, 8), 5), {"width": 32}),
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_read_of_timm_is_written_for_timm(name, tmp_path):
    draw, arguments, options = HELD[name]
    file = {n: a for n, a in draw(*arguments).items() if not n.startswith(("head.fc", "fc."))}
    encoder = make_encoder(name, **options)
    encoder = encoder.clone(depths=SWIN_DEPTHS) if name == "swin_tiny" else encoder
    save_file(file, tmp_path / "a.safetensors")
    zeros = jax.tree.map(np.zeros_like, variables_of(encoder, (32, 32, 3)))
    state = ({"encoder": zeros["params"]}, {"encoder": zeros.get("batch_stats", {})})
    params, stats, _ = load_weights(tmp_path / "a.safetensors", *state, name, "weights")
    written = to_arrays(params["encoder"], stats["encoder"], name)
    counted = {n: a for n, a in file.items() if not n.endswith("num_batches_tracked")}
    assert set(written) == set(counted)
    for array_name, array in written.items():
        np.testing.assert_array_equal(array, counted[array_name])
        assert array.flags.c_contiguous


ENCODERS = {
    "resnet18": {"width": 4},
    "resnet50": {"width": 4, "stem": "imagenet"},
    "convnext_tiny": {"width": 4, "depth": 1},
    "swin_tiny": {"width": 32, "depth": 1},
    "convnet_digits": {"width": 16},
    "mlp": {"width": 8, "norm": "batch"},
    "resnet34": {"width": 4, "norm": "group", "standardise": True},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_are_read_back_bit_for_bit(name, tmp_path):
    encoder = make_encoder(name, **ENCODERS[name])
    variables = variables_of(encoder, (32, 32, 3))
    params, stats = variables["params"], variables.get("batch_stats", {})
    by = pytorch.describe(encoder, name, (32, 32, 3)).by
    assert (by is None) == (name in ("convnet_digits", "mlp", "resnet34"))
    arrays = to_arrays(params, stats, name if by else None)
    assert len(arrays) == len(jax.tree.leaves(variables))
    save_file(arrays, tmp_path / "a.safetensors")
    zeros = jax.tree.map(np.zeros_like, (params, stats))
    read = load_weights(
        tmp_path / "a.safetensors", {"encoder": zeros[0]}, {"encoder": zeros[1]}, name, "weights"
    )
    jax.tree.map(
        np.testing.assert_array_equal, (read[0]["encoder"], read[1]["encoder"]), (params, stats)
    )


# --- The description for PyTorch ------------------------------------------------------------------

# name, fields, side: built by, what config.json says
BUILT = [
    ("resnet18", {"width": 64, "stem": "imagenet"}, 64, "timm", {}),
    ("resnet50", {"width": 64, "stem": "imagenet", "activation": "gelu"}, 64, "timm", "gelu"),
    ("resnet18", {"width": 64}, 32, "torchvision", {}),
    ("resnet50", {"width": 8, "activation": "leaky_relu"}, 32, "torchvision", {}),
    ("resnet34", {"width": 16, "stem": "imagenet", "activation": "tanh"}, 64, "torchvision", {}),
    ("convnext_small", {"width": 32, "depth": 1}, 33, "timm", [32, 64, 128, 256]),
    ("swin_tiny", {"width": 64, "depth": 1}, 60, "timm", [2, 4, 8, 16]),
    ("swin_tiny", {"width": 32, "depth": 2}, 224, "timm", [1, 2, 4, 8]),
]


@pytest.mark.parametrize("name, fields, side, by, said", BUILT)
def test_who_builds_what(name, fields, side, by, said):
    built = pytorch.describe(make_encoder(name, **fields), name, (side, side, 3))
    assert built.by == by
    assert bool(built.script) == (by == "torchvision")
    assert built.architecture.startswith("ssl_jax_") == (by != "timm")
    assert not said or said in built.arguments.values()
    compile(built.script, "load_torch.py", "exec")


@pytest.mark.parametrize(
    "name, fields",
    [
        ("resnet18", {"width": 64, "norm": "group"}),
        ("resnet18", {"width": 64, "stem": "imagenet", "residual": False}),
        ("resnet18", {"width": 64, "stem": "imagenet", "standardise": True}),
        ("convnet", {"width": 32}),
    ],
)
def test_what_pytorch_does_not_have(name, fields):
    built = pytorch.describe(make_encoder(name, **fields), name, (32, 32, 3))
    assert built == (None, f"ssl_jax_{name}", {}, None, "")


@pytest.mark.parametrize("stored, size", [((10, 10), 8), ((9, 12), 0)])
def test_config_json_says_how_images_are_prepared(stored, size):
    """What a reader of config.json computes is what the run's probes see."""
    images = images_of((*stored, 3), 2)
    recipe = Recipe(size=size, mean=(0.4, 0.5, 0.6), std=(0.2,))
    side = (size, size) if size else stored
    description = pytorch.config_json(
        pytorch.Built("timm", "resnet18"),
        features=512,
        image=(*side, 3),
        stored=(*stored, 3),
        mean=recipe.mean,
        std=recipe.std,
    )
    said = description["pretrained_cfg"]
    assert said["input_size"] == [3, *side] and said["std"] == pytest.approx([0.2] * 3)
    assert said["crop_pct"] == (0.8 if size else 1)
    found = pytorch.prepared(images, json.loads(json.dumps(description)))
    expected = np.moveaxis(np.asarray(evaluation_view(recipe)(jnp.asarray(images))), -1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_pytorch_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: None)
    assert pytorch.features_in_pytorch(tmp_path, "timm", np.zeros((1, 3, 8, 8))) == (
        None,
        "torch and timm not installed",
    )


def test_a_failure_of_pytorch_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(pytorch, "PROGRAM", "raise RuntimeError('as it is')")
    assert pytorch.features_in_pytorch(tmp_path, "timm", np.zeros((1, 3, 8, 8))) == (
        None,
        "timm failed: RuntimeError: as it is",
    )


# --- The program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_the_program_has_nothing_of_this_machine(name):
    """Any batch, three platforms, weights inside, and no call of this project's own."""
    encoder = make_encoder(name, **ENCODERS[name])
    variables = variables_of(encoder, (32, 32, 3))

    def apply(images):
        return encoder.apply(variables, images.astype(jnp.float32) / 255, train=False)

    if native.available() and name == "convnet_digits":  # else there is nothing to leave out
        traced = jax.jit(apply).trace(jnp.zeros((1, 32, 32, 3), jnp.uint8))
        assert "ssl_jax_" in traced.lower().as_text()
    content = stablehlo.to_bytes(apply, (32, 32, 3))
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
    (given,), (made,) = program.in_avals, program.out_avals
    assert (str(given), made.dtype) == ("uint8[b,32,32,3]", jnp.float32)
    assert str(made.shape[0]) == "b" and isinstance(made.shape[1], int)
    assert "ssl_jax_" not in program.mlir_module()
    assert b".py" not in content  # no place on this machine either
    assert len(content) > 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))


# A jax without this package, nor any other that it needs for itself.
ELSEWHERE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ssl_jax", "flax", "configs", "optax", "chex", "orbax"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy
import jax.export
folder, images = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(folder + "/encoder.stablehlo", "rb").read()))
images = numpy.load(images)
found = {str(n): numpy.asarray(program.call(images[:n])) for n in (1, 3, 17)}
assert "ssl_jax" not in sys.modules and "flax" not in sys.modules
numpy.savez(folder + "/found.npz", **found)
"""


def features_elsewhere(folder: Path, images: np.ndarray) -> dict[int, np.ndarray]:
    np.save(folder / "images.npy", images)
    words = [str(folder), str(folder / "images.npy")]
    subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *words],
        check=True,
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    with np.load(folder / "found.npz") as found:
        return {int(n): found[n] for n in found.files}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", *ENCODERS])
def test_the_program_runs_where_this_package_is_not(name, run, out, tmp_path):
    if name == "run":
        folder, shape, expect = shutil.copytree(out, tmp_path / "copy"), (8, 8, 1), run.encoder()
    else:
        folder, shape = tmp_path, (32, 32, 3)
        encoder = make_encoder(name, **ENCODERS[name])
        variables = variables_of(encoder, shape)

        @jax.jit
        def expect(images):
            return encoder.apply(variables, images.astype(jnp.float32) / 255, train=False)

        (tmp_path / stablehlo.NAME).write_bytes(stablehlo.to_bytes(expect, shape))
    images = images_of(shape, 17)
    expected = np.asarray(expect(images))
    scale = max(1.0, np.abs(expected).max())
    assert np.ptp(expected) > 0.1
    for count, found in features_elsewhere(Path(folder), images).items():
        print(
            f"{name}, {count} images: {np.abs(found - expected[:count]).max():.1e} of {scale:.2g}"
        )
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-5 * scale)


# --- The card -------------------------------------------------------------------------------------


def header_of(text: str) -> dict:
    _, header, _ = text.split("---\n", 2)
    return yaml.safe_load(header)


def test_the_card_says_what_result_json_does(run, out):
    text = (out / "card.md").read_text()
    header = header_of(text)
    assert (header["library_name"], header["license"]) == ("jax", "apache-2.0")
    assert {"byol", "self-supervised-learning", "mlp"} <= set(header["tags"])
    for name in ("linear_accuracy", "knn_accuracy", "rankme"):
        assert f"| {name} | {run.result[name]:.4f} |" in text
    assert "raw features, Adam, epoch 1 |" in text and "k = 5, temperature 0.1 |" in text
    assert "| step | 8 of 8 |" in text and "PyTorch has no such module" in text
    assert "| mean of pixels in \\[0, 1\\] | 0.3053 |" in text
    assert f"--config.checkpoint={run.workdir} --config.step=8" in text
    assert f"jax {jax.__version__}" in text


def written_for_card(**changes) -> dict:
    facts = {"steps": 9, "image": [40, 40, 3], "crop": [32, 32], "features": 64, "parameters": 1234}
    facts |= {"normalisation": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}, "files": {}}
    facts |= {"names": "timm", "built_by": "timm", "license": "", "command": "ssl-jax", "steps": 9}
    return facts | {"versions": {"jax": "1"}} | changes


SETTINGS = quickstart.get_config().to_dict()
RESULT = {"steps": 9, "linear_accuracy": 0.5, "random_init_linear_accuracy": 0.25, "rankme": 3.0}


def test_foreign_text_stays_in_its_place():
    """In the header a text is one YAML text; in the body it is no markup and no new cell."""
    config = SETTINGS | {"method": "a|b\n---\n`x`: [1]"}
    text = card.card(config, None, {}, written_for_card(command="cat `a` | b"))
    assert header_of(text)["tags"][2] == config["method"]
    assert "license" not in header_of(text)
    body = text.split("---\n", 2)[2]
    assert "| method | a&#124;b\\\\n---\\\\n\\`x\\`: \\[1\\] |" in body
    assert "`cat 'a' \\| b`" in body and "the central 32x32 are seen" in body
    assert "has not ended" in body and "drawn by class" not in body


def test_a_share_of_the_labels_is_said():
    config = supervised.get_config().to_dict()
    config["data"]["labelled_share"] = 0.1
    text = card.card(config, None, {}, written_for_card())
    assert "all of it, and of these a share of 0.1, drawn by class |" in text


def test_the_card_of_a_run_says_where_it_comes_from():
    parent = {"path": "/w/first", "step": 7, "provenance": None}
    provenance = {"commit": "abc123", "changed": True, "command": "ssl-jax x", "parents": [parent]}
    text = card.card(SETTINGS, RESULT | {"provenance": provenance}, {}, written_for_card())
    assert "| linear_accuracy | 0.5000 | 0.2500 | linear probe" in text
    assert "| trained by | `ssl-jax x` |" in text and "| began from | /w/first, step 7 |" in text
    assert "| commit of ssl_jax | abc123, changed |" in text


def test_a_step_in_the_middle_has_the_numbers_of_its_row():
    row = {"knn_validation": 0.25, "rankme": 3.5, "validation_accuracy": float("nan"), "loss": -1}
    text = card.card(SETTINGS, RESULT, row, written_for_card(steps=6))
    assert "| step | 6 of 9 |" in text
    assert "| knn_validation | 0.25 | cosine kNN on training images" in text
    assert "| rankme | 3.5 | without labels, on training images |" in text
    assert "validation_accuracy" not in text
    assert "linear_accuracy" not in text and "nan" not in text


# --- Against timm and torchvision, where they are installed ---------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of torch and timm, where they are imported
@pytest.mark.parametrize("name, fields, side, by, said", BUILT[:-1])
def test_pytorch_computes_the_same_features(name, fields, side, by, said, tmp_path):
    pytest.importorskip("torch")
    assert pytorch.importlib.util.find_spec(by), f"torch without {by}"
    encoder, image = make_encoder(name, **fields), (side, side, 3)
    variables = variables_of(encoder, image)
    built = pytorch.describe(encoder, name, image)
    images = images_of(image, 3)
    recipe = Recipe(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))

    @jax.jit
    def apply(images):
        return encoder.apply(variables, evaluation_view(recipe)(images), train=False)

    expected = np.asarray(apply(images))
    config = pytorch.config_json(
        built,
        features=expected.shape[1],
        image=image,
        stored=image,
        mean=recipe.mean,
        std=recipe.std,
    )
    write_json(tmp_path / "config.json", config)
    arrays = to_arrays(variables["params"], variables.get("batch_stats", {}), name)
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "load_torch.py").write_text(built.script)
    given = pytorch.prepared(images, config)
    features, why = pytorch.features_in_pytorch(tmp_path, by, given)
    assert features is not None, why
    if by == "timm":  # with a new classifier, too, for fine-tuning
        timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
        model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()
        assert tuple(model(torch.from_numpy(given)).shape) == (3, 7)
        grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
        assert sum(p.numel() for p in grey.parameters()) < sum(a.size for a in arrays.values())
    largest = np.abs(expected).max()
    print(
        f"{name} {fields} by {by}: {np.abs(features - expected).max():.1e}, largest {largest:.2g}"
    )
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * max(1, largest))


@pytest.mark.slow
def test_a_supervised_run_leaves_without_its_head(tmp_path):
    fields = {"encoder.name": "resnet18", "encoder.width": 8, "data.name": "digits"}
    fields |= {"data.train_size": 128, "data.validation_size": 0, "epochs": 1, "batch_size": 64}
    fields |= {"augment.mean": (0.3,), "augment.std": (0.4,)}
    run = ssl_jax.train("supervised:resnet18", tmp_path / "S", **fields)
    ssl_jax.train("export", tmp_path / "out", checkpoint=str(run.workdir))
    result, text = read_json(tmp_path / "out/result.json"), (tmp_path / "out/card.md").read_text()
    assert (result["features"], result["built_by"]) == (64, "torchvision")
    assert result["normalisation"] == {"mean": [0.3], "std": [0.4]}
    assert "lie before the classifier, which is left out" in text
    assert f"| test_accuracy | {run.result['test_accuracy']:.4f} |" in text
    assert "supervised" in header_of(text)["tags"]
    assert not any(n.startswith("fc") for n in load_file(tmp_path / "out/model.safetensors"))
    why = result["differences"].get("pytorch_why", "")
    assert (result["differences"]["pytorch"] or 0) < 1e-4 and (not why or "not installed" in why)


@pytest.mark.slow
def test_a_run_in_bfloat16_is_exported_in_its_own_precision(tmp_path):
    fields = SMALL | {"encoder.name": "resnet18", "encoder.width": 4, "precision": "bfloat16"}
    run = ssl_jax.train("quickstart", tmp_path / "W", **fields | {"epochs": 1})
    ssl_jax.train("export", tmp_path / "out", checkpoint=str(run.workdir), step="best")
    content = (tmp_path / "out" / "encoder.stablehlo").read_bytes()
    assert "bf16" in jax.export.deserialize(bytearray(content)).mlir_module()
    images = images_of((8, 8, 1), 5)
    expected = run.encoder(best=True)(images)
    limit = 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(stablehlo.features(content, images), expected, rtol=0, atol=limit)


def test_the_command_line_of_the_page(run, out):
    """The card's own command exports the same checkpoint again."""
    words = read_json(out / "result.json")["command"].split()
    assert words[0] == "ssl-jax"
    values = launch.parse_flags(words)
    config = values["config"].value
    assert (config.task, config.step, config.license) == ("export", "8", "apache-2.0")
    assert Path(config.checkpoint) == run.workdir and ROOT.exists()
