"""Members of a grid against the same runs one by one, and against the supervised step itself."""

import functools
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.augment.labelled import make_augment
from ssl_jax.augment.views import make_normalise
from ssl_jax.experiments.harness.dispatched import (
    Member,
    PenaltyState,
    dispatched,
    make_program,
    stack,
    sum_penalties,
    sum_scores,
)
from ssl_jax.experiments.harness.members import train_members
from ssl_jax.losses import LOSSES
from ssl_jax.models import make_classifier
from ssl_jax.models.layers import Norm
from ssl_jax.optim import make_optimizer
from ssl_jax.optim.decay import layer_index
from ssl_jax.train.state import init_key
from ssl_jax.train.supervised import init_supervised, make_supervised_step

SIDE, COUNT, BATCH, EPOCHS, STEPS, CLASSES = 8, 24, 6, 2, 4, 3
RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.integers(0, 256, (COUNT, SIDE, SIDE, 1), dtype=np.uint8))
LABEL = jnp.asarray(RNG.integers(0, CLASSES, COUNT), jnp.int32)
MEMBERS = [Member(0.05, 0.5, 3), Member(0.01, 0.1, 3), Member(0.05, 0.5, 4)]


class Flat(nn.Module):
    """A layer with BatchNorm and one without."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, use_bias=False, name="linear1")(x.reshape(len(x), -1))
        return nn.relu(nn.Dense(6, name="linear2")(Norm("batch", name="norm1")(x, train)))


CLASSIFIER = make_classifier(Flat(), CLASSES)
AUGMENT, NORMALISE = (
    make_augment(image_size=SIDE, mean=(0.5,), std=(0.5,)),
    make_normalise((0.5,), (0.5,)),
)


def optimizer(rate, decay, kind="decoupled", layerwise=""):
    return make_optimizer("adam", rate, weight_decay=decay, decay=kind, layerwise=layerwise)


def order(seed, step):
    epoch, place = divmod(step, STEPS)
    return (
        np.random.default_rng([seed, epoch])
        .permutation(COUNT)[place * BATCH : (place + 1) * BATCH]
        .astype(np.int32)
    )


@functools.cache
def program(kind="decoupled", layerwise="", watched=False):
    build = partial(optimizer, kind=kind, layerwise=layerwise)
    if watched:
        params, _ = jax.eval_shape(
            CLASSIFIER.init, jax.random.key(0), jnp.zeros((2, SIDE, SIDE, 1))
        )
        index = layer_index(params)
        build = lambda rate, decay: sum_penalties(optimizer(rate, decay, kind, layerwise), index)  # noqa: E731
    return make_program(
        classifier=CLASSIFIER,
        optimizer=build,
        augment=AUGMENT,
        normalise=NORMALISE,
        loss=LOSSES["softmax"],
        num_classes=CLASSES,
    )


def train(made, members, stop=lambda members: False, **options):
    """(states, members as arrays, what was recorded), or None."""

    def record(states, epoch):
        return {"right": np.asarray(made.score(states, IMAGE, LABEL)["right"])} if epoch else {}

    sizes = {"epochs": EPOCHS, "steps_per_epoch": STEPS}
    options |= {"record": record, "stop": lambda steps: stop(steps * len(members))}
    found = train_members(dispatched(made, members, IMAGE, LABEL), order, **sizes, **options)
    return found and (found[0], stack(members), found[1])


def alone(member, kind="decoupled", layerwise=""):
    """The run of a member by the supervised step itself, with plain numbers: (state, losses of
    every step).
    """
    own = optimizer(member.learning_rate, member.weight_decay, kind, layerwise)
    key = init_key(jax.random.key(member.seed))
    state = init_supervised(key, jnp.zeros((2, SIDE, SIDE, 1)), CLASSIFIER, own)
    parts = {
        "augment": AUGMENT,
        "classifier": CLASSIFIER,
        "optimizer": own,
        "loss": LOSSES["softmax"],
    }
    step, losses = jax.jit(make_supervised_step(**parts, num_classes=CLASSES)), []
    for n in range(EPOCHS * STEPS):
        index = order(member.seed, n)
        batch = {
            "image": IMAGE[index],
            "label": LABEL[index],
            "position": jnp.arange(BATCH, dtype=jnp.int32),
        }
        state, metrics = step(state, batch, jax.random.key(member.seed))
        losses.append(float(metrics["loss"]))
    return state, np.array(losses)


@functools.cache
def trained(kind="decoupled", layerwise=""):
    """(states, members, recorded) of all members together."""
    return train(program(kind, layerwise), MEMBERS, keep=(1, EPOCHS * STEPS))


@pytest.mark.parametrize("kind, layerwise, i", [("decoupled", "", 2), ("pre", "mean", 1)])
def test_a_member_is_the_run_that_the_supervised_step_makes(kind, layerwise, i):
    states, _, recorded = trained(kind, layerwise)
    state, losses = alone(MEMBERS[i], kind, layerwise)
    own = jax.tree.map(lambda x: x[i], (states.params, states.stats))
    chex.assert_trees_all_close(own, (state.params, state.stats), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        recorded["loss"][i], losses.reshape(EPOCHS, STEPS).mean(1), rtol=1e-5
    )


def test_a_member_is_the_same_alone_and_in_company():
    together, separate = trained()[0], [train(program(), [member])[0] for member in MEMBERS]
    stacked = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves), *(states.params for states in separate)
    )
    chex.assert_trees_all_close(together.params, stacked, rtol=1e-4, atol=1e-5)


def test_members_that_differ_in_rates_begin_alike_and_in_seeds_do_not():
    states = program().init(Member(*map(np.array, zip(*MEMBERS, strict=True))), IMAGE[:2])
    kernel = states.params["encoder"]["linear1"]["kernel"]
    np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.abs(kernel[0] - kernel[2]).max() > 0.01


def test_watching_changes_no_weight_and_sums_what_a_step_opposes():
    made = program(watched=True)
    watched, _, recorded = train(made, MEMBERS)
    chex.assert_trees_all_close(watched.params, trained()[0].params, rtol=1e-4, atol=1e-5)
    # three layers and the whole
    assert recorded["opposing_ratio"].shape == (len(MEMBERS), EPOCHS, 4)
    # One step by hand, in float64: theta, u = -eta U, d = eta lambda.
    theta, u, d = np.array([1.0, -2.0, 0.1, -0.05]), np.array([-0.1, 0.2, -0.4, 0.3]), 0.25
    expected = (
        np.abs(d * theta)[np.abs(theta + u - d * theta) > np.abs(theta + u)].sum()
        / np.abs(d * theta).sum()
    )
    own = sum_penalties(
        make_optimizer("sgd", 1.0, weight_decay=d, decay="decoupled"), ({"w": 1}, 1)
    )
    state = own.init({"w": jnp.array(theta)})
    for _ in range(2):
        updates, state = own.update({"w": jnp.array(-u)}, state, {"w": jnp.array(theta)})
    assert isinstance(state, PenaltyState) and 0 < expected < 1
    np.testing.assert_allclose(state.sums["ratio"], [2 * expected] * 2, rtol=1e-5)
    np.testing.assert_allclose(state.sums["fraction"], [2 * 0.5] * 2, rtol=1e-5)
    np.testing.assert_allclose(updates["w"], u - d * theta, rtol=1e-5)


def test_pre_decay_is_taken_ahead():
    states, members, _ = trained("pre", "mean")
    head = states.params["head"]["kernel"]  # layer 3 of 3, whose factor is 2 * 3 / (3 + 1)
    d = np.array([member.learning_rate * member.weight_decay * 1.5 for member in MEMBERS])
    ahead = program("pre", "mean").ahead(states, members)
    np.testing.assert_allclose(
        ahead.params["head"]["kernel"], (1 - d)[:, None, None] * head, rtol=1e-6
    )
    states, members, _ = trained()
    chex.assert_trees_all_equal(program().ahead(states, members).params, states.params)


def test_parameters_are_kept_after_the_steps_asked_for():
    states, _, recorded = trained()
    last = np.concatenate(
        [np.reshape(x, (len(MEMBERS), -1)) for x in jax.tree.leaves(states.params)], axis=1
    )
    assert recorded["parameters"].shape == (len(MEMBERS), 2, last.shape[1])
    np.testing.assert_array_equal(recorded["parameters"][:, 1], last)
    assert np.abs(recorded["parameters"][:, 0] - last).max() > 0


def test_it_ends_where_it_is_asked_to():
    asked = []
    assert (
        train(program(), MEMBERS, stop=lambda members: asked.append(members) or len(asked) == 3)
        is None
    )
    assert asked == [3, 3, 3]


def test_scores_leave_out_what_only_fills_up():
    logits, label = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]]), jnp.array([0, 0, -1])
    counted = sum_scores(logits, label)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:2], label[:2])
    assert float(counted["right"]) == 1
    np.testing.assert_allclose(counted["loss"], nats.sum(), rtol=1e-6)
