"""Features of a frozen encoder: extracted in batches, kept on disk, and checked before use.

Features are (N, F) float32 NumPy arrays, labels (N,) integers in [0, num_classes). Each row is one
image.
"""

import io
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import numpy as np
from jax.tree_util import Partial

from ssl_jax import files
from ssl_jax.errors import UserError
from ssl_jax.runtime import stops
from ssl_jax.runtime.terminal import warn

AHEAD = 4  # batches given to the device before the first is read back
_HEADER = "__header__"  # stored beside the arrays: their fingerprint and their names


@jax.jit
def _call(apply: Callable, batch: jax.Array) -> jax.Array:
    return apply(batch)


def extract(apply: Callable, image: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Compute apply(image) for all images, batch by batch.

    The last batch is filled up with copies of its last image, so all batches share one compiled
    program. With `apply = jax.tree_util.Partial(f, variables)` the variables are arguments of that
    program, and the next call with the same `f` uses it again. Any other callable is compiled with
    its variables as constants.

    Args:
        apply: image (B, H, W, C) uint8 -> features (B, F).
        image: (N, H, W, C) uint8.
        batch_size: largest number of images in a batch.

    Returns:
        (N, F) float32.

    Raises:
        UserError: there is no image, or `batch_size` is below 1.
    """
    chex.assert_rank(image, 4)
    if not len(image) or batch_size < 1:
        raise UserError(
            f"features: got {len(image)} images in batches of {batch_size}, takes 1 or more of each"
        )
    batch_size = min(batch_size, len(image))
    # The variables go to the device once, not with every batch.
    apply = jax.device_put(apply if isinstance(apply, Partial) else Partial(apply))
    ready: list[np.ndarray] = []
    # The device computes these while the host reads those before them.
    pending: deque[jax.Array] = deque()
    for start in range(0, len(image), batch_size):
        stops.check()
        pending.append(_extract_batch(apply, image[start : start + batch_size], batch_size))
        if len(pending) > AHEAD:
            ready.append(np.asarray(pending.popleft(), np.float32))
    ready += [np.asarray(features, np.float32) for features in pending]
    return np.concatenate(ready)[: len(image)]


def _extract_batch(apply: Callable, image: np.ndarray, batch_size: int) -> jax.Array:
    padded = np.pad(image, [(0, batch_size - len(image)), (0, 0), (0, 0), (0, 0)], mode="edge")
    features = _call(apply, padded)
    chex.assert_shape(features, (batch_size, None))
    return features


def cached_features(
    path: str | os.PathLike, fingerprint: dict, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays of `compute()`, from a file if it has them.

    A file with another fingerprint is written again. So is a damaged one, with one line on standard
    error. A file that cannot be written costs one line, too.

    Args:
        path: the .npz file.
        fingerprint: all that the arrays depend on, as JSON values: digests of data and weights.
        compute: returns the arrays by name.

    Returns:
        The arrays by name.
    """
    path, wanted = Path(path), json.dumps(fingerprint, sort_keys=True)
    arrays = _read(path, wanted)
    if arrays is None:
        arrays = {name: np.asarray(array) for name, array in compute().items()}
        try:
            _write(path, wanted, arrays)
        except UserError as error:  # the next start computes them again
            warn(f"{error}; features are not kept")
    return arrays


def _read(path: Path, wanted: str) -> dict[str, np.ndarray] | None:
    """Return the arrays, or None where the file is damaged or has another fingerprint."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")  # a pipe would be waited for
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            header = json.loads(arrays[_HEADER].item())
            if header["fingerprint"] != wanted:
                return None
            return {name: arrays[name] for name in header["names"]}
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own
        warn(f"{path}: damaged, features are computed again ({type(error).__name__})")
        return None


def _write(path: Path, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Write the file whole; a directory in its place is kept beside it."""
    header = np.array(json.dumps({"fingerprint": fingerprint, "names": list(arrays)}))
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{_HEADER: header}, **arrays)
    files.make_folder(path.parent)
    if path.is_dir() and not path.is_symlink():
        files.keep_beside(path)
    files.write_whole(path, content.getvalue())


def check_examples(name: str, x: np.ndarray, y: np.ndarray, num_classes: int) -> None:
    """Raise UserError where features are not finite or labels lie outside [0, num_classes).

    Args:
        name: which examples, for the message, such as "train".
        x: features (N, F).
        y: labels (N,), integers.
        num_classes: number of classes.
    """
    chex.assert_rank([x, y], [2, 1])
    chex.assert_equal_shape_prefix([x, y], 1)
    if not len(x):
        raise UserError(f"{name} features: got 0 examples, takes at least 1")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{name} features: got {len(bad)} values that are not finite in "
            f"{len(np.unique(bad[:, 0]))} of {len(x)} rows, the first at row {row}, "
            f"column {column}; takes finite values only"
        )
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if len(outside):
        raise UserError(
            f"{name} labels: got {len(outside)} outside the range, the first {y[outside[0]]} "
            f"at row {outside[0]}; takes 0 to {num_classes - 1}"
        )
