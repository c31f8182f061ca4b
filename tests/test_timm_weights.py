"""Weight files: names, shapes, both formats, other windows, and files that do not fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convnext import draw_file

from ssl_jax.errors import UserError
from ssl_jax.models import MLPHead, load_weights, make_classifier, make_encoder, make_network
from ssl_jax.models.timm_weights import RULES, _renamed, _their_name, resize_table

DEPTHS = (1, 1, 3, 1)


def start(init, side=32):
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, side, side, 3)))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def convnext(classes=5):
    return start(make_classifier(make_encoder("convnext_tiny", width=4, depth=1), classes).init)


@pytest.fixture
def path(tmp_path):
    save_file(draw_file(DEPTHS, 4, 5), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_the_head_is_taken_where_it_fits(path):
    params, _, message = load_weights(path, *convnext(5), "convnext_tiny", "weights")
    file = draw_file(DEPTHS, 4, 5)
    chex.assert_trees_all_equal(
        params["head"], {"kernel": file["head.fc.weight"].T, "bias": file["head.fc.bias"]}
    )
    assert message.endswith("with its head")
    params, _, message = load_weights(path, *convnext(7), "convnext_tiny", "weights")
    assert not np.any(params["head"]["kernel"])
    assert message.endswith("its head has 5 classes, here are 7: left as initialised")


@pytest.mark.parametrize(
    "weight, bias",
    [((5, 7), (5,)), ((5, 32), (4,)), ((5, 32, 1, 1), (5,)), ((5,), (5,)), ((5, 32), (5, 1))],
)
def test_a_head_of_another_shape_is_named(tmp_path, weight, bias):
    file = draw_file(DEPTHS, 4, 5)
    assert file["head.fc.weight"].shape == (5, 32)
    file |= {
        "head.fc.weight": np.zeros(weight, np.float32),
        "head.fc.bias": np.zeros(bias, np.float32),
    }
    save_file(file, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"the head in .* takes \(classes, 32\) and \(classes,\)"):
        load_weights(tmp_path / "a.safetensors", *convnext(5), "convnext_tiny", "weights")


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("bn1.running_var", -0.5, "bn1.running_var in .* has -0.5, a variance takes at least 0"),
        ("bn1.running_mean", np.nan, "bn1.running_mean in .* not finite"),
        ("conv1.weight", np.inf, "conv1.weight in .* not finite"),
    ],
)
def test_numbers_that_no_network_has_are_named(tmp_path, name, value, words):
    file = resnet_file((2, 2, 2, 2), 4, 5)
    file[name].flat[1] = value
    save_file(file, tmp_path / "a.safetensors")
    init = make_classifier(make_encoder("resnet18", width=4, stem="imagenet"), 5).init
    with pytest.raises(UserError, match=words):
        load_weights(tmp_path / "a.safetensors", *start(init), "resnet18", "weights")


def test_a_trunk_for_pretraining_takes_the_encoder_alone(path):
    network = make_network(make_encoder("convnext_tiny", width=4, depth=1), MLPHead(8, 4))
    params, stats = start(network.init)
    loaded, same, message = load_weights(path, params, stats, "convnext_tiny", "weights")
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, params)
    chex.assert_trees_all_equal((loaded["projector"], same), (params["projector"], stats))
    assert np.any(loaded["encoder"]["stem_conv"]["kernel"]) and message.endswith("no head")


def resnet_file(depths, width, classes):
    """torchvision's names of a ResNet of basic blocks, with random arrays."""
    shapes, norms = {"conv1": (width, 3, 7, 7)}, {"bn1": width}
    inputs = width
    for stage, depth in enumerate(depths, start=1):
        c = width * 2 ** (stage - 1)
        for i in range(depth):
            block = f"layer{stage}.{i}."
            shapes |= {
                block + "conv1": (c, inputs if i == 0 else c, 3, 3),
                block + "conv2": (c, c, 3, 3),
            }
            norms |= {block + "bn1": c, block + "bn2": c}
            if i == 0 and stage > 1:
                shapes[block + "downsample.0"], norms[block + "downsample.1"] = (c, inputs, 1, 1), c
        inputs = c
    rng = np.random.default_rng(0)
    file = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    for name, c in norms.items():
        for leaf in ("weight", "bias", "running_mean"):
            file[f"{name}.{leaf}"] = rng.normal(size=c)
        file[f"{name}.running_var"] = rng.uniform(0.1, 2, size=c)
        file[f"{name}.num_batches_tracked"] = np.array(3)
    file |= {"fc.weight": rng.normal(size=(classes, inputs)), "fc.bias": rng.normal(size=classes)}
    return {name: np.asarray(a, np.float32) for name, a in file.items()}


def resnet(depth=18):
    return start(make_classifier(make_encoder(f"resnet{depth}", width=4, stem="imagenet"), 5).init)


def test_resnets_arrays_come_to_their_places(tmp_path):
    file = resnet_file((2, 2, 2, 2), 4, 5)
    save_file(file, tmp_path / "r.safetensors")
    params, stats, message = load_weights(
        tmp_path / "r.safetensors", *resnet(), "resnet18", "weights"
    )
    block, recorded = params["encoder"]["stage2_block1"], stats["encoder"]["stage2_block1"]
    kernel = file["layer2.0.downsample.0.weight"]
    chex.assert_trees_all_equal(block["shortcut_conv"]["kernel"], kernel.transpose(2, 3, 1, 0))
    chex.assert_trees_all_equal(block["norm2"]["batch"]["scale"], file["layer2.0.bn2.weight"])
    chex.assert_trees_all_equal(
        recorded["shortcut_norm"]["batch"]["var"], file["layer2.0.downsample.1.running_var"]
    )
    chex.assert_trees_all_equal(
        stats["encoder"]["stem_norm"]["batch"]["mean"], file["bn1.running_mean"]
    )
    assert message.startswith(f"weights: {20 + 20 * 4} arrays of resnet18 from")


def test_files_that_do_not_fit_are_refused(tmp_path, path):
    save_file(resnet_file((2, 2, 2, 2), 4, 5), tmp_path / "r18.safetensors")
    save_file(resnet_file((3, 4, 6, 3), 4, 5), tmp_path / "r34.safetensors")
    cases = [
        (
            tmp_path / "r34.safetensors",
            resnet(18),
            "resnet18",
            r"layer1.2.bn1.bias \(4,\) is not known",
        ),
        (
            tmp_path / "r18.safetensors",
            resnet(34),
            "resnet34",
            "layer1.2.[a-z0-9.]* is missing.* more$",
        ),
        (
            tmp_path / "r18.safetensors",
            convnext(),
            "convnext_tiny",
            "does not fit convnext_tiny: got names such as bn1.bias, takes such as head.norm.b",
        ),
    ]
    for file, (params, stats), name, words in cases:
        with pytest.raises(UserError, match=words):
            load_weights(file, params, stats, name, "weights")
    wide = start(make_classifier(make_encoder("convnext_tiny", width=6, depth=1), 5).init)
    with pytest.raises(UserError, match=r"makes \(4,\) where \(6,\) is needed"):
        load_weights(path, *wide, "convnext_tiny", "weights")
    with pytest.raises(
        UserError, match="^weights.mlp: got a file for mlp, takes one for convnext_tiny"
    ):
        load_weights(path, *wide, "mlp", "weights.mlp")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="^weights: got .*gone.safetensors, which is no file"):
        load_weights(tmp_path / "gone.safetensors", *convnext(), "convnext_tiny", "weights")
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(UserError, match=f"^weights: .*{name}") as caught:
            load_weights(tmp_path / name, *convnext(), "convnext_tiny", "weights")
        assert "\n" not in str(caught.value)


def test_names_of_older_swin_files():
    ends = {f"layers.{i}.downsample.reduction.weight": np.full((1,), i) for i in range(3)}
    starts = _renamed(ends | {"layers.0.blocks.1.attn_mask": np.zeros(1)})
    expected = {f"layers.{i + 1}.downsample.reduction.weight": np.full((1,), i) for i in range(3)}
    chex.assert_trees_all_equal(starts, expected)
    chex.assert_trees_all_equal(_renamed(expected), expected)


def test_every_stage_and_block_has_a_name_of_its_own():
    for name in ("convnext_tiny", "swin_tiny", "resnet50"):
        params, stats = start(make_classifier(make_encoder(name, width=32), 5).init)
        paths = [
            tuple(key.key for key in path)
            for tree in (params["encoder"], stats.get("encoder", {}))
            for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        ]
        assert len({_their_name(RULES[name], path) for path in paths}) == len(paths)


def test_tables_of_another_window():
    """The centre stays, constants and symmetry too; one pixel keeps the centre alone."""
    table = np.random.default_rng(0).normal(size=(13 * 13, 2))
    small = resize_table(table, 7 * 7).reshape(7, 7, 2)
    grid = table.reshape(13, 13, 2)
    chex.assert_trees_all_close(small[3, 3], np.float32(grid[6, 6]))
    chex.assert_trees_all_close(resize_table(table, 1)[0], np.float32(grid[6, 6]))
    turned = resize_table(grid[::-1, ::-1].reshape(169, 2), 49).reshape(7, 7, 2)
    chex.assert_trees_all_close(turned[::-1, ::-1], small, atol=1e-6)
    chex.assert_trees_all_close(
        resize_table(np.full((169, 2), 3.0), 49), np.full((49, 2), 3.0, np.float32)
    )
    assert resize_table(table, 169) is table
    # Steps of 1 and 1.01 from the centre: place 2 lies 0.99 of the way from the first to the
    # second.
    line = np.linspace(0, 1, 13)[:, None, None] ** 2 * np.ones((1, 13, 1))
    small = resize_table(line.reshape(169, 1), 49).reshape(7, 7)
    assert small[5, 0] == pytest.approx(
        line[7, 0, 0] + (line[8, 0, 0] - line[7, 0, 0]) / 1.01, rel=1e-4
    )


# --- Against timm itself, where it is installed ---------------------------------------------------

TIMM = {
    "convnext_tiny": ("convnext_tiny", {}),
    "swin_tiny": ("swin_tiny_patch4_window7_224", {"img_size": 32}),
    "resnet18": ("resnet18", {}),
}


def randomise(model, torch):
    """No parameter keeps a value that hides it (a bias of zero, a layer scale of 1e-6)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("gamma", "running_var")):
                tensor.copy_(0.3 + 0.1 * noise.clamp(-2, 2))
            elif tensor.ndim == 1 or "table" in name:
                tensor.add_(0.3 * noise)
    return model.eval()


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.filterwarnings("default")
def test_logits_are_those_of_timm_itself(tmp_path, name, suffix):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    model = randomise(timm.create_model(TIMM[name][0], num_classes=10, **TIMM[name][1]), torch)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        library = pytest.importorskip("safetensors.torch")
        library.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    classifier = make_classifier(
        make_encoder(name, width=0, stem="imagenet" if "res" in name else "cifar"), 10
    )
    params, stats, _ = load_weights(path, *start(classifier.init), name, "weights")
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
    got = jax.jit(classifier.logits)(params, stats, image)
    print(
        f"{name}: largest logit {np.max(np.abs(expected)):.3f}, difference "
        f"{np.max(np.abs(got - expected)):.1e}"
    )
    chex.assert_trees_all_close(got, expected, atol=1e-4)


@pytest.mark.filterwarnings("default")
def test_resized_tables_are_those_of_timm_itself():
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    table = np.random.default_rng(0).normal(size=(169, 3)).astype(np.float32)
    for window in (1, 2, 3, 4, 6):
        rows = (2 * window - 1) ** 2
        expected = timm.layers.resize_rel_pos_bias_table(
            torch.tensor(table), (window, window), (rows, 3)
        ).numpy()
        chex.assert_trees_all_close(resize_table(table, rows), expected, atol=1e-5)
