"""Weights in files: those of the PyTorch libraries are read, and written.

Names are those of timm (1.0) for ConvNeXt and Swin. For ResNet they are those of torchvision and
timm, which agree. A file is safetensors or a state dict that torch saved. Reading the latter takes
torch. An encoder that neither library has is in a file under our own names, in our own layout: the
path in the parameter tree, with dots.
"""

import importlib
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.types import Params

# Pattern in our module path -> theirs, applied one after the other. {0} and {1} stand for the first
# and second number found, less one, and {2} for the first number itself.
Rules = dict[str, str]
CONVNEXT: Rules = {
    r"^stem_conv": "stem.0",
    r"^stem_norm": "stem.1",
    r"^stage(\d)_norm": "stages.{0}.downsample.0",
    r"^stage(\d)_conv": "stages.{0}.downsample.1",
    r"^stage(\d)_block(\d+)": "stages.{0}.blocks.{1}",
    r"/depthwise": "/conv_dw",
    r"/linear(\d)": "/mlp/fc{2}",
    r"/scale": "",
    r"^norm": "head.norm",
}
SWIN: Rules = {
    r"^stem_conv": "patch_embed.proj",
    r"^stem_norm": "patch_embed.norm",
    r"^stage(\d)_merge": "layers.{0}.downsample",
    r"downsample/linear": "downsample/reduction",
    r"^stage(\d)_block(\d+)": "layers.{0}.blocks.{1}",
    r"/attention": "/attn",
    r"/position": "",
    r"/linear(\d)": "/mlp/fc{2}",
}
RESNET: Rules = {
    r"^stem_conv": "conv1",
    r"^stem_norm/batch": "bn1",
    r"^stage(\d)_block(\d+)": "layer{2}.{1}",
    r"/norm(\d)/batch": "/bn{2}",
    r"/shortcut_conv": "/downsample/0",
    r"/shortcut_norm/batch": "/downsample/1",
}
RULES = {name: CONVNEXT for name in ("convnext_tiny", "convnext_small", "convnext_base")}
RULES |= {"swin_tiny": SWIN} | {name: RESNET for name in ("resnet18", "resnet34", "resnet50")}
LEAVES = {  # name of our array -> theirs
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "gamma": "gamma",
    "table": "relative_position_bias_table",
}
BUFFERS = ("num_batches_tracked", "relative_position_index", "attn_mask")  # arrays left out
HEADS = ("head.fc", "head", "fc")  # names of the linear classifier


def load_weights(
    path: str | Path, params: Params, stats: Params, architecture: str, field: str
) -> tuple[Params, Params, str]:
    """Replace the encoder's arrays of a classifier or network by those of a file.

    The file's head is used where `params` has a head of the same shape. Tables of relative
    positions for another window are resized.

    Args:
        path: a safetensors file or a state dict.
        params: {"encoder", ...}, as initialised.
        stats: {"encoder"} or {}, as initialised.
        architecture: name of the encoder, one of RULES.
        field: where the user named the file, for the messages.

    Returns:
        (params, stats, message), where the message is one line for the user.

    Raises:
        UserError: for an architecture without rules, an unreadable file, or a file whose arrays are
            missing, unknown or of another shape.
    """
    try:
        return _load(path, params, stats, architecture)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def _load(
    path: str | Path, params: Params, stats: Params, architecture: str
) -> tuple[Params, Params, str]:
    file = _renamed(read_arrays(path))
    encoder = {"params": params["encoder"], "batch_stats": stats.get("encoder", {})}
    ours: dict[tuple, Any] = flax.traverse_util.flatten_dict(encoder)
    own = any(name.endswith(".kernel") for name in file)  # PyTorch calls no array so
    if architecture not in RULES and not own:
        raise UserError(f"got a file for {architecture}, takes one for {', '.join(RULES)}")
    _check_values(path, file)
    head = next((name for name in HEADS if f"{name}.weight" in file), None)
    head_file = {leaf: file.pop(f"{head}.{leaf}", None) for leaf in ("weight", "bias")}
    names = _own_name if own else partial(_their_name, RULES[architecture])
    theirs = {key: names(key[1:]) for key in ours}
    new = {
        key: file[name] if own else _fitted(file[name], key[-1], ours[key].shape)
        for key, name in theirs.items()
        if name in file
    }
    _check_fit(
        path, architecture, {theirs[key]: (new.get(key), ours[key].shape) for key in ours}, file
    )
    loaded = flax.traverse_util.unflatten_dict(
        {key: jnp.asarray(a, ours[key].dtype) for key, a in new.items()}
    )
    params = params | {"encoder": loaded["params"]}
    stats = stats | ({"encoder": loaded["batch_stats"]} if "batch_stats" in loaded else {})
    params, about_head = _with_head(path, params, head_file)
    return params, stats, f"weights: {len(new)} arrays of {architecture} from {path}{about_head}"


def to_arrays(params: Params, stats: Params, architecture: str | None) -> dict[str, np.ndarray]:
    """Return the encoder's arrays as a file has them; `load_weights` reads them back, bit for bit.

    Args:
        params: parameters of the encoder.
        stats: its running statistics, {} where it has none.
        architecture: one of RULES, for PyTorch's names and layout; None: our own.

    Returns:
        The arrays by name. PyTorch's count of batches is not among them, its modules begin at 0.
    """
    ours = flax.traverse_util.flatten_dict({"params": params, "batch_stats": stats})
    if architecture is None:
        return {_own_name(key[1:]): np.asarray(array) for key, array in ours.items()}
    return {
        _their_name(RULES[architecture], key[1:]): _unfitted(np.asarray(array), key[-1])
        for key, array in ours.items()
    }


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file in either format by name; a UserError if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"got {path}, which is no file; takes a safetensors file or a state dict")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    except UserError:
        raise
    except Exception as error:  # whatever the two libraries raise for a broken file
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot read {path} ({type(error).__name__}: {reason})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_state_dict(path: Path) -> dict[str, np.ndarray]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UserError(f"reading {path} takes torch; a .safetensors file does not") from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state)
    return {name: value.float().numpy() for name, value in state.items() if hasattr(value, "numpy")}


def _renamed(file: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the file's arrays without buffers and under today's names.

    Old files of Swin name a merge by the stage before it; new ones by the stage after it.
    """
    file = {name: a for name, a in file.items() if name.split(".")[-1] not in BUFFERS}
    if "layers.0.downsample.reduction.weight" not in file:
        return file
    return {
        re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) + 1}.down", k): a
        for k, a in file.items()
    }


def _own_name(path: tuple[str, ...]) -> str:
    """Return our own name of the array at our path."""
    return ".".join(path)


def _their_name(rules: Rules, path: tuple[str, ...]) -> str:
    """Return the file's name of the array at our path."""
    name = "/".join(path[:-1])
    for ours, theirs in rules.items():
        name = re.sub(
            ours, lambda m, theirs=theirs: _numbered(theirs, [int(n) for n in m.groups()]), name
        )
    return f"{name}.{LEAVES.get(path[-1], path[-1])}".replace("/", ".")


def _numbered(theirs: str, found: list[int]) -> str:
    """Fill the numbers found in our path into their name."""
    less_one = [n - 1 for n in found] + [0, 0]
    return theirs.format(*less_one[:2], *found[:1])


def _fitted(array: np.ndarray, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array in our layout: kernels with the outputs last, tables for our window."""
    if leaf == "kernel":
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return resize_table(array, shape[0]) if leaf == "table" and array.ndim == 2 else array


def _unfitted(array: np.ndarray, leaf: str) -> np.ndarray:
    """Return the array in PyTorch's layout, contiguous; the inverse of `_fitted`."""
    if leaf == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def _check_fit(
    path: str | Path,
    architecture: str,
    arrays: dict[str, tuple[np.ndarray | None, tuple[int, ...]]],
    file: dict[str, np.ndarray],
) -> None:
    """Raise a UserError with the first names that are missing, of another shape or not known.

    arrays: name -> (array of the file or None, shape that is needed).
    """
    wrong = [f"{name} is missing" for name, (array, _) in arrays.items() if array is None]
    wrong += [
        f"{name} makes {array.shape} where {shape} is needed"
        for name, (array, shape) in arrays.items()
        if array is not None and array.shape != shape
    ]
    wrong += [
        f"{name} {array.shape} is not known" for name, array in file.items() if name not in arrays
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not fit {architecture}: {'; '.join(wrong[:3])}{more}")


def _check_values(path: str | Path, file: dict[str, np.ndarray]) -> None:
    """Raise a UserError for the first array with numbers that no network has."""
    for name, array in file.items():
        if not np.all(np.isfinite(np.asarray(array, np.float64))):
            raise UserError(f"{name} in {path} has numbers that are not finite")
        if name.endswith("running_var") and np.any(array < 0):
            raise UserError(f"{name} in {path} has {array.min()}, a variance takes at least 0")


def _with_head(
    path: str | Path, params: Params, file: dict[str, np.ndarray | None]
) -> tuple[Params, str]:
    """Return params with the file's head where it fits, and words about it for the message.

    One for another number of classes is left out; a UserError for one that is no head of this
    encoder.
    """
    weight, bias = file["weight"], file["bias"]
    if "head" not in params or weight is None or bias is None:
        return params, ", no head"
    kernel = params["head"]["kernel"]
    if weight.shape[1:] != kernel.shape[:1] or bias.shape != weight.shape[:1]:
        raise UserError(
            f"the head in {path} has weight {weight.shape} and bias {bias.shape}, "
            f"takes (classes, {kernel.shape[0]}) and (classes,)"
        )
    if weight.T.shape != kernel.shape:
        return (
            params,
            f"; its head has {len(weight)} classes, here are {kernel.shape[1]}: "
            "left as initialised",
        )
    head = {"kernel": jnp.asarray(weight.T, kernel.dtype), "bias": jnp.asarray(bias, kernel.dtype)}
    return params | {"head": head}, " with its head"


# --- Relative positions of another window ---------------------------------------------------------


def resize_table(table: np.ndarray, rows: int) -> np.ndarray:
    """Resize a table of relative positions (M², heads) to (rows = N², heads).

    This is what timm does without SciPy.

    Interpolation is bilinear between points whose distances from the centre grow geometrically. The
    ratio, from 1.01 on, is the one that puts the outermost points at the ends of the new grid.
    Tables that are not of square windows, or already fit, are returned as they are.
    """
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    if old**2 != len(table) or new**2 != rows or old == new:
        return table
    points = _geometric(old, new)
    wanted = np.arange(new) - new // 2
    weights = np.stack(
        [np.interp(wanted, points, unit) for unit in np.eye(old)], axis=1
    )  # (new, old)
    grid = np.asarray(table, np.float64).reshape(old, old, -1)
    return np.einsum("ai,bj,ijh->abh", weights, weights, grid).reshape(rows, -1).astype(np.float32)


def _geometric(old: int, new: int) -> np.ndarray:
    """Return the positions of the `old` points of one side on the new grid of `new` points."""
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        longer = (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2
        low, high = (low, ratio) if longer else (ratio, high)
    steps = np.cumsum(ratio ** np.arange(old // 2))
    return np.concatenate([-steps[::-1], [0], steps])
