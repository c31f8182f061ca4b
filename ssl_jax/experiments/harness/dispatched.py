"""Networks of any size: members that differ in learning rate, weight decay and seed share a
compiled program.

What is static (network, optimizer, kind of decay, layer-wise rule) makes the program; the rest are
its arguments, so that nothing is compiled twice, and `vmap` trains G members at once. On a CPU G =
1 is the fastest for convolutions: with a kernel for each member they become grouped ones, at two to
four times the cost of one member after the other.

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
from ssl_jax.train.supervised import SupervisedState, init_supervised, make_supervised_step
from ssl_jax.types import PyTree

OPPOSING = ("ratio", "fraction")


class Member(NamedTuple):
    """One run, as numbers; or those of a chunk, as arrays (G,)."""

    learning_rate: Any
    weight_decay: Any
    seed: Any


class Program(NamedTuple):
    """Compiled functions of G members and their states, which are stacked.

    init(members, image (2, H, W, C)) -> states; step(states, members, image (N, H, W, C) uint8,
    label (N,), index (G, B)) -> (states, loss (G,)), donating states; ahead(states, members) ->
    states whose weights are where the next gradient would be taken (`Optimizer.pre`); score(states,
    image (B, H, W, C) uint8, label (B,)) -> {"right", "loss"} (G,), sums over the labels not
    negative.
    """

    init: Callable
    step: Callable
    ahead: Callable
    score: Callable


class PenaltyState(NamedTuple):
    """State of a `watch`ed optimizer; sums: {name: (n + 1,)} over all steps, of n layers and of the
    whole network.
    """

    inner: PyTree
    sums: dict[str, jax.Array]


def sum_penalties(optimizer: Optimizer, index: tuple[PyTree, int]) -> Optimizer:
    """The same steps, with opposing penalties summed up in the state; index: as `layer_index` gives
    it.
    """

    def init(params):
        return PenaltyState(
            optimizer.init(params), {name: jnp.zeros(index[1] + 1) for name in OPPOSING}
        )

    def update(grads, state, params):
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
    optimizer: Callable[[Any, Any], Optimizer],
    augment: Callable,
    normalise: Callable,
    loss: Callable,
    num_classes: int,
    begin: Callable[[Any, Member], Any] = lambda params, member: params,
) -> Program:
    """optimizer(learning_rate, weight_decay), both traced, of a member; augment, loss: as the
    supervised step has them; normalise(image uint8) -> float: for `score`; begin(params, member) ->
    where it begins, from its fresh weights.
    """

    def own(member: Member) -> Optimizer:
        return optimizer(member.learning_rate, member.weight_decay)

    def init(member: Member, image) -> SupervisedState:
        state = init_supervised(
            init_key(jax.random.key(member.seed)),
            image.astype(jnp.float32),
            classifier,
            own(member),
        )
        return state._replace(params=begin(state.params, member))

    def step(state: SupervisedState, member: Member, image, label, index):
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

    def ahead(state: SupervisedState, member: Member):
        return state._replace(params=own(member).pre(state.params, state.opt_state))

    def score(state: SupervisedState, image, label):
        return sum_scores(classifier.logits(state.params, state.stats, normalise(image)), label)

    return Program(
        compile_once(
            jax.jit(
                jax.vmap(init, (0, None)), compiler_options={"xla_backend_optimization_level": 1}
            )
        ),
        compile_once(jax.jit(jax.vmap(step, (0, 0, None, None, 0)), donate_argnums=0)),
        compile_once(jax.jit(jax.vmap(ahead))),
        compile_once(jax.jit(jax.vmap(score, (0, None, None)))),
    )


def sum_scores(logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """{"right", "loss"} (): right answers and cross-entropy, summed; a negative label only fills up
    a batch.
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
    """The function, whose first call keeps other threads waiting, so that they need not compile it
    as well.
    """
    lock, done = threading.Lock(), threading.Event()

    def call(*arguments):
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
    """Members (G,), a step of which is one call of the program.

    Args:
        program: their program; a watched optimizer's sums are recorded as "opposing_ratio" and
            "opposing_fraction".
        members: G of them.
        image: (N, H, W, C) uint8, all training images.
        label: (N,).
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
    """Members as arrays (G,)."""
    columns = zip(zip(*members, strict=True), (np.float32, np.float32, np.uint32), strict=True)
    return Member(*(np.array(column, kind) for column, kind in columns))


def opposing_sums(states: PyTree) -> dict[str, np.ndarray]:
    """{"opposing_NAME": (G, n + 1)} of a watched optimizer, {} of another."""
    if not isinstance(states.opt_state, PenaltyState):
        return {}
    return {
        f"opposing_{name}": np.asarray(x, np.float64) for name, x in states.opt_state.sums.items()
    }
