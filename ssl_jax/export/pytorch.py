"""An encoder described for PyTorch: how timm builds it, or a script that builds it in torchvision.

timm (1.0) builds ConvNeXt and Swin of any width and depth. Its ResNet begins with 64 channels and
a 7x7 convolution of stride 2, whatever it is told. One with a stem of 3x3 pixels, or of another
width, is torchvision's with the first layers replaced. What neither has is left to jax.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from ssl_jax.models.convnext import ConvNeXt
from ssl_jax.models.resnet import BasicBlock, ResNet
from ssl_jax.models.swin import HEAD_CHANNELS, Swin

WEIGHTS, CONFIG, SCRIPT = "model.safetensors", "config.json", "load_torch.py"
STANDARD = 64  # channels of the first stage of timm's and of torchvision's ResNet
# Our activation -> torch's; timm calls them as we do.
ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "leaky_relu": "LeakyReLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
}
PACKAGES = {"timm": ("torch", "timm"), "torchvision": ("torch", "torchvision")}
LONGEST = 300  # seconds that PyTorch may take for a few images


class Built(NamedTuple):
    """How PyTorch comes to an encoder."""

    # "timm", "torchvision", or None: it has no such module, and the arrays have our own names
    by: str | None
    architecture: str  # name in config.json; one that timm does not know where it builds none
    arguments: dict[str, Any] = {}  # of timm's model
    ends: tuple[str, str] | None = None  # timm's names of the first convolution and the classifier
    script: str = ""  # text of load_torch.py


def describe(encoder: nn.Module, name: str, image: tuple[int, int, int]) -> Built:
    """Return how PyTorch comes to an encoder.

    Args:
        encoder: the module.
        name: its name in `models.ENCODERS`.
        image: height and width in pixels, and channels, of what the module sees.

    Returns:
        The description.
    """
    ours = f"ssl_jax_{name}"
    if isinstance(encoder, ConvNeXt):
        dims = [encoder.width * 2**i for i in range(len(encoder.depths))]
        ends = "stem.0", "head.fc"
        return Built("timm", name, {"depths": list(encoder.depths), "dims": dims}, ends)
    if isinstance(encoder, Swin):
        theirs, ends = f"{name}_patch4_window{encoder.window}_224", ("patch_embed.proj", "head.fc")
        return Built("timm", theirs, _swin(encoder, image), ends)
    if isinstance(encoder, ResNet):
        style = encoder.style
        if style.norm != "batch" or style.standardise or not encoder.residual:
            return Built(None, ours)
        if encoder.stem == "imagenet" and encoder.width == STANDARD:
            activation = {} if style.activation == "relu" else {"act_layer": style.activation}
            return Built("timm", name, activation, ("conv1", "fc"))
        return Built("torchvision", ours, script=_script(encoder, image[2]))
    return Built(None, ours)


def _swin(encoder: Swin, image: tuple[int, int, int]) -> dict[str, Any]:
    heads = [encoder.width * 2**i // HEAD_CHANNELS for i in range(len(encoder.depths))]
    return {
        "depths": list(encoder.depths),
        "embed_dim": encoder.width,
        "num_heads": heads,
        "window_size": encoder.window,
        "img_size": list(image[:2]),
    }


def _script(encoder: ResNet, channels: int) -> str:
    """Return load_torch.py of a ResNet over images of so many channels."""
    block = "BasicBlock" if encoder.block is BasicBlock else "Bottleneck"
    width, small = encoder.width, encoder.stem == "cifar"
    size, stride = (3, 1) if small else (7, 2)
    depths, convolution = (
        list(encoder.depths),
        f"{channels}, {width}, {size}, {stride}, {size // 2}",
    )
    lines = [
        '"""Build the encoder whose weights lie beside this file: a ResNet of torchvision."""',
        "",
        "from pathlib import Path",
        "",
        "import torch",
        "from safetensors.torch import load_file",
        f"from torchvision.models.resnet import {block}, ResNet",
        "",
        "",
        f'def load(path=Path(__file__).with_name("{WEIGHTS}")):',
        '    """Return the module: normalised images (b, C, H, W) -> features (b, F)."""',
        f"    model = ResNet({block}, {depths})",
        f"    model.conv1 = torch.nn.Conv2d({convolution}, bias=False)",
        *(["    model.maxpool = torch.nn.Identity()"] if small else []),
        "    model.fc = torch.nn.Identity()",
    ]
    if width != STANDARD:
        lines += [
            f"    model.bn1, model.inplanes = torch.nn.BatchNorm2d({width}), {width}",
            f"    for i, depth in enumerate({depths}):",
            f"        stage = model._make_layer({block}, {width} * 2**i, depth, min(i + 1, 2))",
            '        setattr(model, f"layer{i + 1}", stage)',
        ]
    if encoder.style.activation != "relu":
        lines += [
            '    for module in [m for m in model.modules() if hasattr(m, "relu")]:',
            f"        module.relu = torch.nn.{ACTIVATIONS[encoder.style.activation]}()",
        ]
    lines += ["    model.load_state_dict(load_file(path))", "    return model.eval()"]
    return "\n".join(lines) + "\n"


def config_json(
    built: Built,
    *,
    features: int,
    image: tuple[int, int, int],
    stored: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """Return what timm reads of config.json.

    Args:
        built: from `describe`.
        features: F.
        image: height and width in pixels, and channels, of what the module sees.
        stored: the same of the images, whose centre it sees.
        mean: of the pixels in [0, 1], one number or one a channel.
        std: of the pixels, likewise.

    Returns:
        The entries; a program that is not timm finds the normalisation there, too.
    """
    height, width, channels = image
    transform = {
        "input_size": [channels, height, width],
        "fixed_input_size": "img_size" in built.arguments,
        "interpolation": "bilinear",
        "crop_pct": min(height / stored[0], width / stored[1]),
        "crop_mode": "center",
        "mean": [float(v) for v in np.broadcast_to(mean, channels)],
        "std": [float(v) for v in np.broadcast_to(std, channels)],
    }
    if built.ends is not None:  # what timm leaves out for other channels or other classes
        transform |= {"first_conv": built.ends[0], "classifier": built.ends[1]}
    return {
        "architecture": built.architecture,
        "num_classes": 0,
        "num_features": features,
        "global_pool": "avg",
        "model_args": built.arguments,
        "pretrained_cfg": {"custom_load": False, "num_classes": 0} | transform,
    }


def prepared(images: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Return images as a module of PyTorch takes them, by what config.json says.

    Args:
        images: (B, H, W, C) uint8.
        config: content of config.json.

    Returns:
        (B, C, h, w) float32: the centre, normalised.
    """
    cfg = config["pretrained_cfg"]
    _, height, width = cfg["input_size"]
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    seen = images[:, top : top + height, left : left + width].astype(np.float32) / 255
    seen = (seen - np.float32(cfg["mean"])) / np.float32(cfg["std"])
    return np.ascontiguousarray(seen.transpose(0, 3, 1, 2))


PROGRAM = f"""
import runpy, sys
import numpy, torch
folder, images, features, by = sys.argv[1:]
if by == "timm":
    import timm
    model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
else:
    model = runpy.run_path(folder + "/{SCRIPT}")["load"]()
with torch.no_grad():
    numpy.save(features, model(torch.from_numpy(numpy.load(images))).numpy())
"""


def features_in_pytorch(folder: Path, by: str, images: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Build the module from the files in a process of its own, without a network.

    Args:
        folder: with config.json and model.safetensors.
        by: "timm" or "torchvision".
        images: (B, C, H, W) float32, normalised.

    Returns:
        The features (B, F) and ""; or None and why there are none: PyTorch is not installed, or
        what went wrong there.
    """
    missing = [name for name in PACKAGES[by] if importlib.util.find_spec(name) is None]
    if missing:
        return None, f"{' and '.join(missing)} not installed"
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch, "images.npy"), Path(scratch, "features.npy")
        np.save(given, images)
        words = [str(folder.resolve()), str(given), str(found), by]
        try:
            run = subprocess.run(
                [sys.executable, "-c", PROGRAM, *words],
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                check=False,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            return None, f"{by} took more than {LONGEST} s"
        if run.returncode or not found.exists():
            return None, f"{by} failed: {(run.stderr.strip().splitlines() or ['?'])[-1][:200]}"
        return np.load(found), ""
