"""Weight decay: where in the step it acts, how strongly in which layer, and on which parameters.

d is the fraction of a weight that one step removes. U is the optimizer's direction, eta its
learning rate, and u = -eta U.

    decoupled    theta - eta U(theta) - d theta          Loshchilov & Hutter 2019, arXiv 1711.05101
    real-time    (1 - d) (theta - eta U(theta))          the same, acting on the weight just updated
    pre          phi - eta U(phi),  phi = (1 - d) theta  the gradient, too, is taken at phi

A rate is a number, or a pytree of one number per parameter, which `layer_rates` returns. The first
two kinds are transformations and stand last in an `optax.chain`. `optax.inject_hyperparams` lets
their rate follow a schedule. The third kind shrinks the parameters before their gradient is taken.
No transformation of a gradient can do that.
"""

# JAX and Optax leave the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.types import Params, PyTree

KeyPath = tuple[Any, ...]  # the keys on the way to a leaf, as `jax.tree_util` has them

# The factor of layer i of n. Its mean over the layers is (n + 1) / 2n for "i/n", 1 for the others.
# Its largest value is 1, almost 2 and 2. A single layer keeps the plain rate.
RULES: dict[str, Callable[[int, int], float]] = {
    "i/n": lambda i, n: i / n,
    "mean": lambda i, n: 2 * i / (n + 1),
    "max": lambda i, n: 2 * (i - 1) / (n - 1) if n > 1 else 1.0,
}


def coupled_decay(rate: float | PyTree) -> optax.GradientTransformation:
    """Return g -> g + rate theta: it adds the gradient of the L2 penalty rate ||theta||^2 / 2.

    It stands first in a chain.

    >>> import optax
    >>> optimizer = optax.chain(coupled_decay({"w": 0.1, "b": 0.0}), optax.sgd(0.5))
    >>> params, grads = {"w": 2.0, "b": 3.0}, {"w": 1.0, "b": 1.0}
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)  # w: 2 - 0.5 (1 + 0.1 * 2), b: 3 - 0.5
    {'b': Array(2.5, dtype=float32), 'w': Array(1.4, dtype=float32)}
    """
    return _with_params(rate, lambda gradient, theta, d: gradient + d * theta)


def decoupled_decay(rate: float | PyTree) -> optax.GradientTransformation:
    """Return u -> u - d theta, which stands last in a chain. The rate is d.

    >>> import optax
    >>> optimizer = optax.chain(optax.sgd(0.5), decoupled_decay(0.1))
    >>> updates, _ = optimizer.update(1.0, optimizer.init(2.0), 2.0)
    >>> float(optax.apply_updates(2.0, updates))  # 2 - 0.5 - 0.1 * 2
    1.2999999523162842
    """
    return _with_params(rate, lambda update, theta, d: update - d * theta)


def real_time_decay(rate: float | PyTree) -> optax.GradientTransformation:
    """Return u -> (1 - d)(theta + u) - theta, which stands last in a chain. The rate is d.

    >>> import optax
    >>> optimizer = optax.chain(optax.sgd(0.5), real_time_decay(0.1))
    >>> updates, _ = optimizer.update(1.0, optimizer.init(2.0), 2.0)
    >>> float(optax.apply_updates(2.0, updates))  # (1 - 0.1) (2 - 0.5)
    1.350000023841858
    """
    return _with_params(rate, lambda update, theta, d: (1 - d) * update - d * theta)


def pre_decay(params: Params, rate: float | PyTree) -> Params:
    """Shrink the parameters to (1 - d) theta, before their gradient is taken. The rate is d.

    >>> import jax, optax
    >>> optimizer, loss, theta = optax.sgd(0.5), lambda x: x**2 / 2, 2.0
    >>> phi = pre_decay(theta, 0.1)
    >>> updates, _ = optimizer.update(jax.grad(loss)(phi), optimizer.init(theta), phi)
    >>> float(optax.apply_updates(phi, updates))  # phi - 0.5 phi
    0.8999999761581421
    """
    return _per_parameter(rate, lambda theta, d: (1 - d) * theta, params)


def layer_rates(
    params: Params, rate: Any, rule: str = "mean", order: Sequence[str] | None = None
) -> PyTree:
    """Return `rate` times the rule's factor of the parameter's layer, for every parameter.

    Args:
        params: pytree of arrays.
        rate: a number, possibly traced.
        rule: the factor of layer i of n. "i/n". "mean" is 2i / (n + 1): the mean over the layers
            is `rate`. "max" is 2(i - 1) / (n - 1): the mean is `rate`, the largest is 2 rate, and
            the first layer does not decay.
        order: paths of the modules in forward order, see `layer_index`.

    Returns:
        A pytree like `params` of numbers.

    Raises:
        UserError: no rule has this name.

    >>> kernel, bias = jnp.ones((2, 2)), jnp.ones(2)
    >>> params = {"conv1": {"kernel": kernel}, "conv2": {"kernel": kernel, "bias": bias}}
    >>> layer_rates(params, 0.5, "i/n")
    {'conv1': {'kernel': 0.25}, 'conv2': {'bias': 0.5, 'kernel': 0.5}}
    """
    if rule not in RULES:
        raise UserError(f"optimizer.layerwise: got {rule!r}, {nearest(rule, RULES)}")
    index, n = layer_index(params, order)
    return jax.tree.map(lambda i: rate * RULES[rule](i, n), index)


def decay_rates(
    params: Params,
    rate: Any,
    *,
    layerwise: str = "",
    exclude: str = "",
    order: Sequence[str] | None = None,
) -> PyTree:
    """Return the decay rate of every parameter.

    Args:
        params: pytree of arrays.
        rate: a number, possibly traced.
        layerwise: the rule of `layer_rates` by which the rate depends on the layer. "": none.
        exclude: regular expression. Parameters in whose path it is found get 0.0. "": none.
        order: paths of the modules in forward order, see `layer_index`.

    Returns:
        A pytree like `params` of numbers.

    Raises:
        UserError: no rule is called `layerwise`, or `exclude` is no regular expression.
    """
    if layerwise:
        rates = layer_rates(params, rate, layerwise, order)
    else:
        rates = jax.tree.map(lambda _: rate, params)
    return jax.tree.map(_rate_if, decayed(params, exclude), rates)


def _rate_if(kept: bool, rate: Any) -> Any:
    return rate if kept else 0.0


def decayed(params: Params, exclude: str) -> PyTree:
    """Return True for every parameter in whose path the pattern `exclude` is not found.

    The pattern "" excludes none.
    """
    pattern = compile_mask(exclude)

    def is_decayed(key_path: KeyPath, _: jax.Array) -> bool:
        return not (exclude and pattern.search(path_of(key_path)))

    return jax.tree.map_with_path(is_decayed, params)


def check_mask(params: Params, exclude: str) -> None:
    """Raise UserError where `exclude` is a pattern that is found in no parameter's path."""
    if exclude and all(jax.tree.leaves(decayed(params, exclude))):
        paths = [path_of(path) for path, _ in leaves_with_path(params)]
        raise UserError(
            f"optimizer.exclude: got {exclude!r}, which is found in none of the {len(paths)} "
            f"parameters' paths, {paths[0]} to {paths[-1]}"
        )


def compile_mask(exclude: str) -> re.Pattern[str]:
    """Compile a regular expression. Raise UserError where it is none."""
    try:
        return re.compile(exclude)
    except re.error as error:
        raise UserError(
            f"optimizer.exclude: got {exclude!r}, takes a regular expression ({error})"
        ) from error


def path_of(key_path: KeyPath) -> str:
    """Return a key path as text: "encoder/stem_conv/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def leaves_with_path(tree: PyTree) -> list[tuple[KeyPath, Any]]:
    """Return the (key path, leaf) of a tree, for a type checker: JAX leaves their types unknown."""
    return jax.tree.leaves_with_path(tree)  # pyright: ignore[reportUnknownVariableType]


# --- Which layer a parameter belongs to -----------------------------------------------------------


def layer_index(params: Params, order: Sequence[str] | None = None) -> tuple[PyTree, int]:
    """Return the layer 1..n of every parameter, and n.

    Layers are the modules with weights, counted in forward order. A module has weights if it owns
    an array of two or more dimensions that is not a bias or a table of biases. Its own bias shares
    its number, and so do the norms and scales that follow it. Norms before any weights have 1. The
    convolution of a shortcut starts no layer: it shares the number of the block's last one, before
    it in order. Where nothing at all has weights, every module is a layer.

    Args:
        params: pytree of arrays. Paths of flat keys ("encoder/stem_conv/kernel") count as those of
            nested ones. With an `order` it may be a part of the tree.
        order: paths of the modules that own parameters, in the order of their calls. Modules that
            `params` lacks count as layers by their names. None: by name, see `natural`.

    Returns:
        A pytree like `params` of ints, and the number of layers.

    Raises:
        ValueError: the order lacks a module that owns parameters.
    """
    owned: dict[str, list[tuple[str, Any]]] = {}
    for path, leaf in leaves_with_path(params):
        owned.setdefault(_module(path), []).append((path_of(path), leaf))
    modules = sorted(owned, key=natural) if order is None else list(order)
    if missing := sorted(owned.keys() - set(modules)):
        raise ValueError(
            f"order: does not hold {missing[0]}, one of {len(missing)} modules with parameters"
        )
    weighted = {
        m
        for m in modules
        if (_has_weights(owned[m]) if m in owned else _is_named_a_layer(m, modules))
    }
    layers: dict[str, int] = {}
    n = 0
    for module in modules:
        n += module in (weighted or modules) and "shortcut" not in module
        layers[module] = max(n, 1)

    def layer_of(key_path: KeyPath, _: jax.Array) -> int:
        return layers[_module(key_path)]

    return jax.tree.map_with_path(layer_of, params), max(n, 1)


# Names that come before their siblings, and names that come after them.
_FIRST = r"stem|embed|encoder"
_LAST = (r"shortcut", r"projector", r"predictor", r"head|classifier|logits")

# The place among the siblings, the numbers in the name, the name.
_SortKey = tuple[int, tuple[int, ...], str]


def natural(path: str) -> tuple[_SortKey, ...]:
    """Return the key that sorts paths in forward order, as far as names show it.

    Stems and embeddings come first, heads last. Encoder, projector and predictor follow each other.
    A name's numbers count before its letters: conv1, norm1, conv2, ..., conv10 stand in this order.
    A block's shortcut comes after the rest of the block.

    >>> names = ["head", "norm1", "conv10", "conv2", "norm2", "conv1", "shortcut_conv", "stem"]
    >>> sorted(names, key=natural)
    ['stem', 'conv1', 'norm1', 'conv2', 'norm2', 'conv10', 'shortcut_conv', 'head']
    """

    def part(name: str) -> _SortKey:
        place = next((i for i, pattern in enumerate(_LAST, start=1) if re.match(pattern, name)), 0)
        numbers = tuple(int(digits) for digits in re.findall(r"\d+", name))
        return (-1 if re.match(_FIRST, name) else place, numbers, name)

    return tuple(part(name) for name in path.split("/"))


def _module(key_path: KeyPath) -> str:
    """Return the path of the module that owns a parameter.

    A parameter at the root or in a list is its own module.
    """
    path = path_of(key_path)
    in_list = bool(key_path) and isinstance(key_path[-1], jax.tree_util.SequenceKey)
    return path if in_list or "/" not in path else path.rpartition("/")[0]


def _has_weights(owned: list[tuple[str, Any]]) -> bool:
    """Return whether one of the (path, parameter) is a weight.

    The table of a Swin's relative position biases is none.
    """
    return any(
        len(np.shape(leaf)) >= 2 and not re.search(r"bias|table", path.split("/")[-1])
        for path, leaf in owned
    )


def _is_named_a_layer(module: str, modules: Sequence[str]) -> bool:
    """Return whether a module has no other kind in its name and is no block of other modules."""
    other = re.search(r"norm|scale|position", module.lower())
    return not other and not any(m.startswith(f"{module}/") for m in modules)


# --- A rate on a tree -----------------------------------------------------------------------------


def _with_params(
    rate: float | PyTree, function: Callable[..., Any]
) -> optax.GradientTransformation:
    """Return updates -> function(update, theta, d), which keeps no state."""

    def update(updates: Params, params: Params | None) -> Params:
        if params is None:
            raise ValueError("decay: update(updates, state, params) needs the parameters")
        return _per_parameter(rate, function, updates, params)

    return optax.stateless(update)


def _per_parameter(
    rate: float | PyTree, function: Callable[..., Any], tree: PyTree, *rest: PyTree
) -> PyTree:
    """Return function(leaf, ..., d) in the leaf's own type.

    A parameter whose rate is the plain number 0 is left alone.
    """
    rates = rate
    if jax.tree.structure(rate) != jax.tree.structure(tree):
        rates = jax.tree.map(lambda _: rate, tree)

    def apply(leaf: jax.Array, d: Any, *others: jax.Array) -> jax.Array:
        if isinstance(d, float) and d == 0.0:
            return leaf
        return jnp.asarray(function(leaf, *others, d), jnp.result_type(leaf))

    return jax.tree.map(apply, tree, rates, *rest)
