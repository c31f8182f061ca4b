"""Weight decay: where in the step it acts, how strongly in which layer, and on which parameters.

d is the share of a weight that one step takes; U the optimizer's direction, eta its learning rate, u = -eta U.

    decoupled    theta - eta U(theta) - d theta              Loshchilov & Hutter 2019, arXiv 1711.05101
    real-time    (1 - d) (theta - eta U(theta))              the same, acting on the weight just updated
    pre          phi - eta U(phi),  phi = (1 - d) theta      the gradient, too, is taken at phi

A rate is a number, or a pytree of one number a parameter as `layer_rates` gives. The first two are transformations
that stand last in an `optax.chain`; for a rate that changes by a schedule there is `optax.inject_hyperparams`. The
third shrinks the parameters before their gradient is taken, which no transformation of a gradient can do.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.types import Params, PyTree

# Factor of layer i of n. Their means over the layers: (n + 1) / 2n, and exactly 1 twice; the largest factors: 1, almost
# 2, exactly 2. One single layer keeps the plain rate.
RULES = {
    "i/n": lambda i, n: i / n,
    "mean": lambda i, n: 2 * i / (n + 1),
    "max": lambda i, n: 2 * (i - 1) / (n - 1) if n > 1 else 1.0,
}


def coupled_decay(rate: float | PyTree) -> optax.GradientTransformation:
    """g -> g + rate theta, first in a chain: the gradient of the L2 penalty rate ||theta||^2 / 2.

    >>> import optax
    >>> optimizer = optax.chain(coupled_decay({"w": 0.1, "b": 0.0}), optax.sgd(0.5))
    >>> params, grads = {"w": 2.0, "b": 3.0}, {"w": 1.0, "b": 1.0}
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)  # w: 2 - 0.5 (1 + 0.1 * 2), b: 3 - 0.5
    {'b': Array(2.5, dtype=float32), 'w': Array(1.4, dtype=float32)}
    """
    return _with_params(rate, lambda gradient, theta, d: gradient + d * theta)


def decoupled_decay(rate: float | PyTree) -> optax.GradientTransformation:
    """u -> u - d theta, last in a chain.

    >>> import optax
    >>> optimizer = optax.chain(optax.sgd(0.5), decoupled_decay(0.1))
    >>> updates, _ = optimizer.update(1.0, optimizer.init(2.0), 2.0)
    >>> float(optax.apply_updates(2.0, updates))  # 2 - 0.5 - 0.1 * 2
    1.2999999523162842
    """
    return _with_params(rate, lambda update, theta, d: update - d * theta)


def real_time_decay(rate: float | PyTree) -> optax.GradientTransformation:
    """u -> (1 - d)(theta + u) - theta, last in a chain.

    >>> import optax
    >>> optimizer = optax.chain(optax.sgd(0.5), real_time_decay(0.1))
    >>> updates, _ = optimizer.update(1.0, optimizer.init(2.0), 2.0)
    >>> float(optax.apply_updates(2.0, updates))  # (1 - 0.1) (2 - 0.5)
    1.350000023841858
    """
    return _with_params(rate, lambda update, theta, d: (1 - d) * update - d * theta)


def pre_decay(params: Params, rate: float | PyTree) -> Params:
    """theta -> (1 - d) theta, before the gradient is taken.

    >>> import jax, optax
    >>> optimizer, loss, theta = optax.sgd(0.5), lambda x: x**2 / 2, 2.0
    >>> phi = pre_decay(theta, 0.1)
    >>> updates, _ = optimizer.update(jax.grad(loss)(phi), optimizer.init(theta), phi)
    >>> float(optax.apply_updates(phi, updates))  # phi - 0.5 phi
    0.8999999761581421
    """
    return _per_parameter(rate, lambda theta, d: (1 - d) * theta, params)


def layer_rates(params: Params, rate: Any, rule: str = "mean", order: Sequence[str] | None = None) -> PyTree:
    """rate times the rule's factor of the parameter's layer, for every parameter. `rate`: a number, or a traced one.

    Rules, for layer i of n: "i/n"; "mean" = 2i / (n + 1), whose mean over the layers is `rate`; "max" = 2(i - 1) /
    (n - 1), whose mean is `rate` and whose largest is 2 rate, with no decay in the first layer.

    >>> kernel, bias = jnp.ones((2, 2)), jnp.ones(2)
    >>> layer_rates({"conv1": {"kernel": kernel}, "conv2": {"kernel": kernel, "bias": bias}}, 0.5, "i/n")
    {'conv1': {'kernel': 0.25}, 'conv2': {'bias': 0.5, 'kernel': 0.5}}
    """
    if rule not in RULES:
        raise UserError(f"optimizer.layerwise: got {rule!r}, {nearest(rule, RULES)}")
    index, n = layer_index(params, order)
    return jax.tree.map(lambda i: rate * RULES[rule](i, n), index)


def decay_rates(
    params: Params, rate: Any, *, layerwise: str = "", exclude: str = "", order: Sequence[str] | None = None
) -> PyTree:
    """The rate of every parameter: by layer where `layerwise` names a rule, 0.0 where its path holds `exclude`."""
    rates = layer_rates(params, rate, layerwise, order) if layerwise else jax.tree.map(lambda _: rate, params)
    return jax.tree.map(lambda kept, r: r if kept else 0.0, decayed(params, exclude), rates)


def decayed(params: Params, exclude: str) -> PyTree:
    """True for every parameter in whose path the regular expression `exclude` is not found; "" excludes none."""
    pattern = compile_mask(exclude)
    return jax.tree.map_with_path(lambda p, _: not (exclude and pattern.search(path_of(p))), params)


def check_mask(params: Params, exclude: str) -> None:
    """UserError where `exclude` is a pattern that is found in no parameter's path."""
    if exclude and all(jax.tree.leaves(decayed(params, exclude))):
        paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
        raise UserError(
            f"optimizer.exclude: got {exclude!r}, which is found in none of the {len(paths)} parameters' paths, "
            f"{paths[0]} to {paths[-1]}"
        )


def compile_mask(exclude: str) -> re.Pattern:
    """The regular expression; UserError where it is none."""
    try:
        return re.compile(exclude)
    except re.error as error:
        raise UserError(f"optimizer.exclude: got {exclude!r}, takes a regular expression ({error})") from error


def path_of(key_path) -> str:
    """A key path as text: "encoder/stem_conv/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


# --- Which layer a parameter belongs to --------------------------------------------------------------------------


def layer_index(params: Params, order: Sequence[str] | None = None) -> tuple[PyTree, int]:
    """(the layer 1..n of every parameter, n): layers are the modules with weights, counted in forward order.

    A module has weights if it owns an array of two or more dimensions that is not a bias or a table of biases. Its own
    bias, and the norms and scales that follow it, share its number; norms before any weights have 1. A shortcut's
    convolution opens no layer: it shares the number of the block's last one, before it in order. (Where nothing at all
    has weights, every module is a layer.)

    order: paths of the modules that own parameters, as they are called; `params` may then be a part of the tree, and
    modules of the order that it lacks are told apart by their names. None: by name, see `natural`. The paths of flat
    keys ("encoder/stem_conv/kernel") count as those of nested ones.
    """
    owned: dict[str, list] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        owned.setdefault(_module(path), []).append((path_of(path), leaf))
    modules = sorted(owned, key=natural) if order is None else list(order)
    if missing := sorted(owned.keys() - set(modules)):
        raise ValueError(f"order: does not hold {missing[0]}, one of {len(missing)} modules with parameters")
    weighted = {m for m in modules if (_has_weights(owned[m]) if m in owned else _is_named_a_layer(m, modules))}
    layers, n = {}, 0
    for module in modules:
        n += module in (weighted or modules) and "shortcut" not in module
        layers[module] = max(n, 1)
    return jax.tree.map_with_path(lambda path, _: layers[_module(path)], params), max(n, 1)


# What comes before the rest of its siblings by its name, and what after it.
_FIRST, _LAST = r"stem|embed|encoder", (r"shortcut", r"projector", r"predictor", r"head|classifier|logits")


def natural(path: str) -> tuple:
    """The key that sorts paths in forward order as far as names tell it.

    Stems and embeddings first, heads last; encoder, projector, predictor; a name's numbers before its letters, so that
    conv1, norm1, conv2, ..., conv10 stand in this order; a block's shortcut after the rest of the block.

    >>> sorted(["head", "norm1", "conv10", "conv2", "norm2", "conv1", "shortcut_conv", "stem"], key=natural)
    ['stem', 'conv1', 'norm1', 'conv2', 'norm2', 'conv10', 'shortcut_conv', 'head']
    """

    def part(name: str) -> tuple:
        place = next((i for i, pattern in enumerate(_LAST, start=1) if re.match(pattern, name)), 0)
        numbers = tuple(int(digits) for digits in re.findall(r"\d+", name))
        return (-1 if re.match(_FIRST, name) else place, numbers, name)

    return tuple(part(name) for name in path.split("/"))


def _module(key_path) -> str:
    """The path of the module that owns a parameter; at the root, or in a list, a parameter is its own module."""
    path = path_of(key_path)
    in_list = bool(key_path) and isinstance(key_path[-1], jax.tree_util.SequenceKey)
    return path if in_list or "/" not in path else path.rpartition("/")[0]


def _has_weights(owned: list) -> bool:
    """Whether one of the [(path, parameter)] is a weight: not so the table of a Swin's relative position biases."""
    return any(len(np.shape(leaf)) >= 2 and not re.search(r"bias|table", path.split("/")[-1]) for path, leaf in owned)


def _is_named_a_layer(module: str, modules: Sequence[str]) -> bool:
    """What is not named for something else, and is no block around other modules."""
    other = re.search(r"norm|scale|position", module.lower())
    return not other and not any(m.startswith(f"{module}/") for m in modules)


# --- A rate on a tree --------------------------------------------------------------------------------------------


def _with_params(rate, function) -> optax.GradientTransformation:
    """updates -> function(update, theta, d), with no state."""

    def update(updates, params):
        if params is None:
            raise ValueError("decay: update(updates, state, params) needs the parameters")
        return _per_parameter(rate, function, updates, params)

    return optax.stateless(update)


def _per_parameter(rate, function, tree, *rest):
    """function(leaf, ..., d) in the leaf's own type; a parameter whose rate is the plain number 0 is left alone."""
    whole = jax.tree.structure(rate) == jax.tree.structure(tree)
    rates = rate if whole else jax.tree.map(lambda _: rate, tree)

    def one(leaf, d, *others):
        if isinstance(d, float) and d == 0:
            return leaf
        return jnp.asarray(function(leaf, *others, d), jnp.result_type(leaf))

    return jax.tree.map(one, tree, rates, *rest)
