"""Weights of an encoder in local files: read from the PyTorch libraries or our own, and written.

Names are those of timm (1.0) for ConvNeXt and Swin; Meta's own for ConvNeXt are read as well. For
ResNet they are those of torchvision and timm, which agree. Any of them may stand under a prefix of
`PREFIXES`. A file is safetensors or a state dict that torch saved. Reading the latter takes torch.
An encoder that neither library has is in a file under our own names, in our own layout: the path in
the parameter tree, with dots.
"""

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
# What wrappers of PyTorch, and programs that pretrain, put before the names.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
COLLECTIONS = ("params.", "batch_stats.")  # the same of our own names
META: Rules = {  # Meta's names of ConvNeXt, as a pattern -> timm's
    r"^downsample_layers\.0\.": "stem.",
    r"^downsample_layers\.(\d)\.": r"stages.\1.downsample.",
    r"^stages\.(\d)\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"\.dwconv\.": ".conv_dw.",
    r"\.pwconv(\d)\.": r".mlp.fc\1.",
    r"^head\.": "head.fc.",
    r"^norm\.": "head.norm.",
}


class Fitted(NamedTuple):
    """The arrays of a file that fit, in our layout."""

    params: Params  # {"encoder"}, and "head" where it fits
    stats: Params  # {"encoder"} or {}
    count: int  # arrays of the encoder
    about_head: str  # words for the user
    left: tuple[str, ...]  # names in the file that are not taken


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
        fitted = fit_file(path, params, stats, architecture)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    words = f"weights: {fitted.count} arrays of {architecture} from {path}{fitted.about_head}"
    return params | fitted.params, stats | fitted.stats, words


def fit_file(path: str | Path, params: Params, stats: Params, architecture: str) -> Fitted:
    """Return the arrays of a file for an encoder and, where it has one that fits, for its head.

    Args:
        path: a safetensors file or a state dict.
        params: {"encoder", ...}: arrays, or what has their shapes and types.
        stats: {"encoder"} or {}, the same.
        architecture: name of the encoder.

    Returns:
        What the file has of them.

    Raises:
        UserError: as of `load_weights`, without the field.
    """
    file, rest, prefix = _without_prefix(_renamed(read_arrays(path)))
    _check_values(path, file)
    own = _has_own_names(file)
    file = _without_collections(file) if own else file
    if not own and architecture not in RULES:
        raise UserError(f"got a file for {architecture}, takes one for {', '.join(RULES)}")
    if "downsample_layers.0.0.weight" in file:
        file = {_substituted(META, name): array for name, array in file.items()}
    head = _take_head(file, own) or _take_head(rest, own) or {"weight": None, "bias": None}
    encoder = {"params": params["encoder"], "batch_stats": stats.get("encoder", {})}
    ours: dict[tuple, Any] = flax.traverse_util.flatten_dict(encoder)
    rules = {} if own else RULES[architecture]
    theirs = {key: _own_name(key[1:]) if own else _their_name(rules, key[1:]) for key in ours}
    new = {
        key: file[name] if own else _fitted(file[name], key[-1], ours[key].shape)
        for key, name in theirs.items()
        if name in file
    }
    under = f" (under {prefix})" if prefix else ""
    _check_fit(
        f"{path}{under}",
        architecture,
        {theirs[key]: (new.get(key), ours[key].shape) for key in ours},
        file,
    )
    loaded = flax.traverse_util.unflatten_dict(
        {key: jnp.asarray(a, ours[key].dtype) for key, a in new.items()}
    )
    taken, about_head = _with_head(path, {**params, "encoder": loaded["params"]}, head)
    parts = {name: taken[name] for name in ("encoder", "head") if name in taken}
    left = sorted(rest)
    if parts.get("head") is params.get("head"):  # left as initialised
        parts.pop("head", None)
        left += ["head"] if head["weight"] is not None else []
    new_stats = {"encoder": loaded["batch_stats"]} if "batch_stats" in loaded else {}
    return Fitted(parts, new_stats, len(new), about_head, tuple(left))


def _without_prefix(
    file: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """Return the arrays under the prefixes that a file has, without them; the others; the prefix.

    Where some names have a prefix of `PREFIXES`, those without it are not the encoder's.
    """
    rest, found = {}, ""
    while prefix := next((p for p in PREFIXES if any(n.startswith(p) for n in file)), None):
        rest = {name: a for name, a in file.items() if not name.startswith(prefix)} | rest
        file = {n.removeprefix(prefix): a for n, a in file.items() if n.startswith(prefix)}
        found += prefix
    return file, rest, found


def _without_collections(file: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    collections = "|".join(map(re.escape, COLLECTIONS))
    return {re.sub(f"^({collections})", "", name): a for name, a in file.items()}


def _has_own_names(file: dict[str, np.ndarray]) -> bool:
    """Return whether the names are ours, such as stage1_block1.conv1.kernel."""
    return any(name.endswith(".kernel") for name in file)


def _take_head(file: dict[str, np.ndarray], own: bool) -> dict[str, np.ndarray] | None:
    """Remove the linear classifier from a file and return its weight and bias; None for none."""
    for name in HEADS:
        weight, bias = f"{name}.{'kernel' if own else 'weight'}", f"{name}.bias"
        if weight in file and bias in file:
            kernel = file.pop(weight)
            return {"weight": kernel.T if own else kernel, "bias": file.pop(bias)}
    return None


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

    Old files of Swin name a merge by the stage before it; new ones by the stage after it. Our own
    names may have slashes, and the collection of Flax before them.
    """
    file = {name: a for name, a in file.items() if name.split(".")[-1] not in BUFFERS}
    file = {name.replace("/", "."): a for name, a in file.items()}
    if _has_own_names(file):
        return _without_collections(file)
    if "layers.0.downsample.reduction.weight" not in file:
        return file
    return {
        re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) + 1}.down", k): a
        for k, a in file.items()
    }


def _own_name(path: tuple[str, ...]) -> str:
    """Return our own name of the array at our path."""
    return ".".join(path)


def _substituted(rules: Rules, name: str) -> str:
    for pattern, new in rules.items():
        name = re.sub(pattern, new, name)
    return name


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
    if all(array is None for array, _ in arrays.values()):
        raise UserError(
            f"{path} does not fit {architecture}: got names such as {min(file, default='none')}, "
            f"takes such as {min(arrays)}, by themselves or under {', '.join(PREFIXES)}"
        )
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
        if name.endswith(("running_var", ".var")) and np.any(array < 0):
            raise UserError(f"{name} in {path} has {array.min()}, a variance takes at least 0")


def _with_head(
    path: str | Path, params: Params, file: Mapping[str, np.ndarray | None]
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
