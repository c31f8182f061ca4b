"""An encoder with a head: the shape of its parameters, its two modes, dropout, several at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.models import Classifier, make_classifier, make_encoder


def images(batch=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, 8, 8, 1)), jnp.float32)


def make(name="convnet_digits", **options):
    made = make_classifier(make_encoder(name, width=4), 3, **options)
    classifier = Classifier(*map(jax.jit, made))
    return classifier, *classifier.init(jax.random.key(0), images())


def test_logits_are_a_linear_layer_on_the_features():
    classifier, params, stats = make()
    assert set(params) == {"encoder", "head"} and set(stats) == {"encoder"}
    encoder = make_encoder("convnet_digits", width=4)
    features = encoder.apply(
        {"params": params["encoder"], "batch_stats": stats["encoder"]}, images(), False
    )
    expected = np.float64(features) @ np.float64(params["head"]["kernel"]) + np.float64(
        params["head"]["bias"]
    )
    logits = classifier.logits(params, stats, images())
    chex.assert_trees_all_close(logits, np.float32(expected), atol=1e-5)
    assert logits.dtype == jnp.float32


def test_training_normalises_by_the_batch_and_records_it():
    classifier, params, stats = make()
    logits, new = classifier.train(params, stats, images(), jax.random.key(1))
    assert not np.allclose(logits, classifier.logits(params, stats, images()), atol=1e-3)
    for _ in range(100):  # the running statistics keep 0.9 of the old: now they are the batch's
        _, new = classifier.train(params, new, images(), jax.random.key(1))
    settled = classifier.logits(params, new, images())
    chex.assert_trees_all_close(logits, settled, atol=1e-3)
    _, _, none = make("mlp")
    assert none == {}, "no BatchNorm, no statistics"


def test_dropout_follows_its_key_and_leaves_evaluation_alone():
    classifier, params, stats = make("mlp", dropout=0.5)
    one, same, other = (
        classifier.train(params, stats, images(), jax.random.key(k))[0] for k in (1, 1, 2)
    )
    chex.assert_trees_all_equal(one, same)
    assert np.any(np.abs(one - other) > 1e-3)
    plain, _, _ = make("mlp")
    chex.assert_trees_all_equal(
        classifier.logits(params, stats, images()),
        plain.train(params, stats, images(), jax.random.key(1))[0],
    )


def unstack(tree, count=3):
    return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(count)]


@pytest.mark.parametrize("name", ["convnet_digits", "mlp"])
def test_several_models_at_once(name):
    classifier, _, _ = make(name)
    keys = jax.random.split(jax.random.key(0), 3)
    params, stats = jax.vmap(classifier.init, (0, None))(keys, images())

    @jax.jit
    def gradient(params, stats):
        return jax.grad(
            lambda p: jnp.sum(classifier.train(p, stats, images(), jax.random.key(1))[0] ** 2)
        )(params)

    together = jax.jit(jax.vmap(gradient))(params, stats)
    alone = [gradient(*one) for one in zip(*map(unstack, (params, stats)), strict=True)]
    chex.assert_trees_all_close(unstack(together), alone, rtol=1e-3, atol=1e-4)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="init: got 'hee', did you mean 'he'"):
        make(init="hee")
    with pytest.raises(UserError, match="dropout: got 1.5, takes a number in"):
        make(dropout=1.5)
