"""Networks of any size: members that differ in learning rate, weight decay and seed.

They share a compiled program. What is static (network, optimizer, kind of decay, layer-wise rule)
makes the program. The rest are its arguments: nothing is compiled twice, and `vmap` trains G
members at once. On a CPU, G = 1 is the fastest for convolutions: with a kernel for each member they
become grouped ones, at two to four times the cost of one member after the other.

A member's seed alone decides its initialisation, the order of its data and its augmentation: two
members that differ only in rates share all three. Leading axes: G members, E epochs.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.dynamics.penalties import opposing_by_layer, opposing_penalty
from ssl_jax.experiments.harness.members import Members
from ssl_jax.models import Classifier
from ssl_jax.optim import Optimizer
from ssl_jax.train.state import init_key
from ssl_jax.train.supervised import Augment, SupervisedState, init_supervised, make_supervised_step
from ssl_jax.types import Params, PyTree, Scalar

OPPOSING = ("ratio", "fraction")


class Member(NamedTuple):
    """The numbers of one run; or those of a chunk, as arrays (G,)."""

    learning_rate: Any  # number, or float32
    weight_decay: Any  # number, or float32
    seed: Any  # int, or uint32


class Program(NamedTuple):
    """Compiled functions of G members (arrays (G,)) and of their stacked states."""

    # init(members, image (2, H, W, C)) -> states
    init: Callable[[Member, jax.Array], SupervisedState]
    # step(states, members, image (N, H, W, C) uint8, label (N,), index (G, B)) -> states, loss
    # (G,); the states that it takes are donated
    step: Callable[..., tuple[SupervisedState, jax.Array]]
    # ahead(states, members) -> states whose weights are where the next gradient would be taken
    # (`Optimizer.pre`)
    ahead: Callable[[SupervisedState, Member], SupervisedState]
    # score(states, image (B, H, W, C) uint8, label (B,)) -> {"right", "loss"} (G,), the sums of
    # `sum_scores`
    score: Callable[[SupervisedState, jax.Array, jax.Array], dict[str, jax.Array]]


class PenaltyState(NamedTuple):
    """State of an optimizer of `sum_penalties`."""

    inner: PyTree  # the state of the optimizer itself
    # {name: (n + 1,)}, sums over all steps, of n layers and of the whole network
    sums: dict[str, jax.Array]


def sum_penalties(optimizer: Optimizer, index: tuple[PyTree, int]) -> Optimizer:
    """Return an optimizer that takes the same steps and sums up opposing penalties in its state.

    Args:
        optimizer: whose steps to take.
        index: the layer of each parameter, and the number of layers, as `layer_index` gives them.
    """

    def init(params: Params) -> PenaltyState:
        return PenaltyState(
            optimizer.init(params), {name: jnp.zeros(index[1] + 1) for name in OPPOSING}
        )

    def update(grads: Params, state: PenaltyState, params: Params) -> tuple[Params, PenaltyState]:
        taken = optimizer.apart(grads, state.inner, params)
        layers, whole = opposing_by_layer(params, *taken, index), opposing_penalty(params, *taken)
        sums = {name: state.sums[name] + jnp.append(layers[name], whole[name]) for name in OPPOSING}
        updates, inner = optimizer.update(grads, state.inner, params)
        return updates, PenaltyState(inner, sums)

    return Optimizer(
        init,
        lambda params, state: optimizer.pre(params, state.inner),
        update,
        lambda grads, state, params: optimizer.apart(grads, state.inner, params),
    )


def make_program(
    *,
    classifier: Classifier,
    optimizer: Callable[[Scalar, Scalar], Optimizer],
    augment: Augment,
    normalise: Callable[[jax.Array], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    num_classes: int,
    begin: Callable[[Params, Member], Params] = lambda params, member: params,
    weights: tuple[Params, Params] = ({}, {}),
) -> Program:
    """Compile the functions that G members share.

    Args:
        classifier: the network.
        optimizer: (learning rate, weight decay) -> optimizer of a member; both numbers are traced.
        augment: as `make_supervised_step` takes it.
        normalise: image (B, H, W, C) uint8 -> float, the input of the network in evaluation mode.
        loss: logits (B, K), targets (B, K) -> (B,).
        num_classes: number K of classes.
        begin: (fresh weights, member) -> the weights that the member begins with.
        weights: parts of parameters and statistics that take the place of fresh ones, before
            `begin`; the same for all members.

    Returns:
        The functions of all members.
    """

    def own(member: Member) -> Optimizer:
        return optimizer(member.learning_rate, member.weight_decay)

    def init(member: Member, image: jax.Array, weights: tuple[Params, Params]) -> SupervisedState:
        state = init_supervised(
            init_key(jax.random.key(member.seed)),
            image.astype(jnp.float32),
            classifier,
            own(member),
        )
        params, stats = state.params | weights[0], state.stats | weights[1]
        return state._replace(params=begin(params, member), stats=stats)

    def step(
        state: SupervisedState, member: Member, image: jax.Array, label: jax.Array, index: jax.Array
    ) -> tuple[SupervisedState, jax.Array]:
        take = make_supervised_step(
            augment=augment,
            classifier=classifier,
            optimizer=own(member),
            loss=loss,
            num_classes=num_classes,
        )
        batch = {
            "image": image[index],
            "label": label[index],
            "position": jnp.arange(len(index), dtype=jnp.int32),
        }
        state, metrics = take(state, batch, jax.random.key(member.seed))
        return state, metrics["loss"]

    def ahead(state: SupervisedState, member: Member) -> SupervisedState:
        return state._replace(params=own(member).pre(state.params, state.opt_state))

    def score(state: SupervisedState, image: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        return sum_scores(classifier.logits(state.params, state.stats, normalise(image)), label)

    init_members = compile_once(
        jax.jit(
            jax.vmap(init, (0, None, None)), compiler_options={"xla_backend_optimization_level": 1}
        )
    )
    return Program(
        # An argument: as a constant the weights would be a part of the program.
        lambda members, image: init_members(members, image, weights),
        compile_once(jax.jit(jax.vmap(step, (0, 0, None, None, 0)), donate_argnums=0)),
        compile_once(jax.jit(jax.vmap(ahead))),
        compile_once(jax.jit(jax.vmap(score, (0, None, None)))),
    )


def sum_scores(logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """Return {"right", "loss"} (): right answers and cross-entropy in nats, summed over a batch.

    Args:
        logits: (B, K).
        label: (B,). A negative label only fills up the batch and counts nothing.
    """
    counts = label >= 0
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(label, 0)[:, None], axis=1)[
        :, 0
    ]
    right = counts & (jnp.argmax(logits, axis=-1) == label)
    return {
        "right": jnp.sum(right.astype(jnp.float32)),
        "loss": jnp.sum(jnp.where(counts, nats, 0.0)),
    }


def compile_once(function: Callable) -> Callable:
    """Return the function, whose first call keeps other threads waiting.

    So one thread compiles it, and the others find it compiled.
    """
    lock, done = threading.Lock(), threading.Event()

    def call(*arguments: Any) -> Any:
        if done.is_set():
            return function(*arguments)
        with lock:
            result = function(*arguments)
            done.set()
        return result

    return call


def dispatched(
    program: Program, members: Sequence[Member], image: jax.Array, label: jax.Array
) -> Members:
    """Return members (G,), a step of which is one call of the program.

    Args:
        program: as `make_program` makes it. Sums of `sum_penalties` are recorded as
            "opposing_ratio" and "opposing_fraction".
        members: G of them.
        image: (N, H, W, C) uint8, all training images.
        label: (N,) int32.

    Returns:
        The members, as `train_members` takes them.
    """
    columns = stack(members)
    return Members(
        seeds=[member.seed for member in members],
        axes=1,
        init=lambda: program.init(columns, image[:2]),
        call=lambda states, index: program.step(states, columns, image, label, index[:, 0]),
        mean=lambda losses: np.mean(losses, axis=0),
        sums=opposing_sums,
    )


def stack(members: Sequence[Member]) -> Member:
    """Return members as arrays (G,)."""
    columns = zip(zip(*members, strict=True), (np.float32, np.float32, np.uint32), strict=True)
    return Member(*(np.array(column, kind) for column, kind in columns))


def opposing_sums(states: PyTree) -> dict[str, np.ndarray]:
    """Return {"opposing_NAME": (G, n + 1)}, the sums of `sum_penalties`; else {}."""
    if not isinstance(states.opt_state, PenaltyState):
        return {}
    return {
        f"opposing_{name}": np.asarray(x, np.float64) for name, x in states.opt_state.sums.items()
    }
