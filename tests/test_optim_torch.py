"""Twenty steps of PyTorch's own optimizers, where PyTorch is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.optim import make_optimizer

torch = pytest.importorskip("torch")

THETA = np.random.default_rng(0).normal(size=(3, 4))
GRADS = np.random.default_rng(1).normal(size=(20, 3, 4))
RATES = 0.1 * (1 - 0.04 * np.arange(20))
# name: (PyTorch's class, its arguments, our arguments, relative tolerance). RAdam: PyTorch adds eps
# to sqrt(v), we to sqrt(v̂). NAdam: with an endless momentum decay its mu is constant, as ours;
# PyTorch keeps the product of all mu in single precision.
PAIRS = {
    "sgd": ("SGD", {}, {}, 1e-10),
    "momentum": ("SGD", {"momentum": 0.9}, {}, 1e-10),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}, {}, 1e-10),
    "adam": ("Adam", {}, {}, 1e-10),
    "adamw": ("AdamW", {}, {}, 1e-10),
    "adagrad": ("Adagrad", {}, {}, 1e-10),
    "adadelta": ("Adadelta", {}, {}, 1e-10),
    "rmsprop": ("RMSprop", {"alpha": 0.9}, {}, 1e-10),
    "rmsprop with momentum": (
        "RMSprop",
        {"alpha": 0.99, "momentum": 0.9},
        {"rho": 0.99, "heavy_ball": 0.9},
        1e-10,
    ),
    "nadam": ("NAdam", {"momentum_decay": 1e9}, {}, 1e-5),
    "radam": ("RAdam", {"betas": (0.9, 0.9)}, {"b2": 0.9}, 1e-6),
    "adamax": ("Adamax", {}, {}, 1e-10),
}


def theirs(name, options, weight_decay):
    parameter = torch.nn.Parameter(torch.tensor(THETA))
    optimizer = getattr(torch.optim, name)(
        [parameter], lr=0.1, weight_decay=weight_decay, foreach=False, **options
    )
    for rate, grad in zip(RATES, GRADS, strict=True):
        optimizer.param_groups[0]["lr"], parameter.grad = float(rate), torch.tensor(grad)
        optimizer.step()
    return parameter.detach().numpy()


def ours(name, options, weight_decay, decay="auto"):
    with jax.enable_x64(True):
        optimizer = make_optimizer(
            name, lambda t: 0.1 * (1 - 0.04 * t), weight_decay=weight_decay, decay=decay, **options
        )

        def step(carry, grad):
            theta, state = carry
            updates, state = optimizer.update(grad, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        theta = jnp.asarray(THETA)
        return np.asarray(
            jax.jit(lambda: jax.lax.scan(step, (theta, optimizer.init(theta)), GRADS)[0][0])()
        )


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", PAIRS)
def test_twenty_steps_of_pytorch(name, weight_decay):
    theirs_name, their_options, our_options, tolerance = PAIRS[name]
    want = theirs(theirs_name, their_options, weight_decay)
    name = name.split()[0]
    np.testing.assert_allclose(
        ours(name, our_options, weight_decay), want, rtol=tolerance, atol=tolerance / 100
    )


@pytest.mark.parametrize("name", ["NAdam", "RAdam"])
def test_decoupled_decay_of_pytorch(name):
    """PyTorch shrinks theta first and steps then, with the gradient of the unshrunk theta: the same
    sum.
    """
    options = {"betas": (0.9, 0.9)} | ({"momentum_decay": 1e9} if name == "NAdam" else {})
    want = theirs(name, options | {"decoupled_weight_decay": True}, 0.3)
    np.testing.assert_allclose(ours(name.lower(), {"b2": 0.9}, 0.3, "decoupled"), want, rtol=1e-5)


def test_pytorchs_nadam_warms_its_momentum_up_and_ours_does_not():
    assert np.abs(theirs("NAdam", {}, 0.0) - ours("nadam", {}, 0.0)).max() > 1e-2
