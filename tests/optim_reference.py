"""The optimizers and decays once more, in NumPy and float64, one parameter at a time, straight from
the papers.

`direction(name, **options)` gives step(g, theta, eta) -> eta U with a memory of its own; `train`
puts decay on it. Nothing here knows Optax or JAX.
"""

import numpy as np


def sgd():
    return lambda g, theta, eta: eta * g


def momentum(momentum=0.9, inside=False, dampening=0.0):
    m = 0.0

    def step(g, theta, eta):
        nonlocal m
        m = momentum * m + (1 - dampening) * g * (eta if inside else 1)
        return m if inside else eta * m

    return step


def nesterov(momentum=0.9):
    m = 0.0

    def step(g, theta, eta):
        nonlocal m
        m = momentum * m + g
        return eta * (g + momentum * m)

    return step


def adagrad(eps=1e-10, initial=0.0):
    s = initial

    def step(g, theta, eta):
        nonlocal s
        s = s + g**2
        return eta * g / (np.sqrt(s) + eps)

    return step


def adadelta(rho=0.9, eps=1e-6):
    of_g = of_u = 0.0

    def step(g, theta, eta):
        nonlocal of_g, of_u
        of_g = rho * of_g + (1 - rho) * g**2
        u = np.sqrt(of_u + eps) / np.sqrt(of_g + eps) * g
        of_u = rho * of_u + (1 - rho) * u**2
        return eta * u

    return step


def rmsprop(rho=0.9, eps=1e-8, heavy_ball=0.0):
    v = m = 0.0

    def step(g, theta, eta):
        nonlocal v, m
        v = rho * v + (1 - rho) * g**2
        m = heavy_ball * m + g / (np.sqrt(v) + eps)
        return eta * m

    return step


def moments(b1, b2, use):
    """Adam's two moving averages; use(m, v, g, t) -> U."""
    m = v = 0.0
    t = 0

    def step(g, theta, eta):
        nonlocal m, v, t
        t += 1
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return eta * use(m, v, g, t)

    return step


def adam(b1=0.9, b2=0.999, eps=1e-8):
    return moments(b1, b2, lambda m, v, g, t: m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))


def nadam(b1=0.9, b2=0.999, eps=1e-8):
    def use(m, v, g, t):
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        return ahead / (np.sqrt(v / (1 - b2**t)) + eps)

    return moments(b1, b2, use)


def radam(b1=0.9, b2=0.999, eps=1e-8):
    longest = 2 / (1 - b2) - 1

    def use(m, v, g, t):
        m_hat, length = m / (1 - b1**t), longest - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            return m_hat
        above = (length - 4) * (length - 2) * longest
        r = np.sqrt(above / ((longest - 4) * (longest - 2) * length))
        return r * m_hat / (np.sqrt(v / (1 - b2**t)) + eps)

    return moments(b1, b2, use)


def amsgrad(b1=0.9, b2=0.999, eps=1e-8):
    largest = 0.0

    def use(m, v, g, t):
        nonlocal largest
        largest = np.maximum(largest, v)
        return m / (np.sqrt(largest) + eps)

    return moments(b1, b2, use)


def adamax(b1=0.9, b2=0.999, eps=1e-8):
    m = u = 0.0
    t = 0

    def step(g, theta, eta):
        nonlocal m, u, t
        t += 1
        m, u = b1 * m + (1 - b1) * g, np.maximum(b2 * u, np.abs(g) + eps)
        return eta * m / (1 - b1**t) / u

    return step


def lookahead(inner="adam", period=6, slow=0.5, **options):
    fast, s, t = DIRECTIONS[inner](**options), None, 0

    def step(g, theta, eta):
        nonlocal s, t
        s, t = (theta if t % period == 0 else s), t + 1
        after = theta - fast(g, theta, eta)
        return theta - (s + slow * (after - s)) if t % period == 0 else theta - after

    return step


def lion(b1=0.9, b2=0.99):
    m = 0.0

    def step(g, theta, eta):
        nonlocal m
        u, m = np.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g
        return eta * u

    return step


def lars(momentum=0.9, trust=1e-3, eps=0.0):
    m = 0.0

    def step(g, theta, eta):
        nonlocal m
        ratio = trust * np.linalg.norm(theta) / (np.linalg.norm(g) + eps) if g.ndim >= 2 else 1.0
        m = momentum * m + ratio * g
        return eta * m

    return step


def natural(rho=0.95, damping=1e-3, block=64):
    fisher, t = 0.0, 0

    def step(g, theta, eta):
        nonlocal fisher, t
        t += 1
        whole = g.size <= block
        fisher = rho * fisher + (1 - rho) * (np.outer(g, g) if whole else g**2)
        f = fisher / (1 - rho**t)
        if not whole:
            return eta * g / (f + damping)
        return eta * np.linalg.solve(f + damping * np.eye(g.size), g.ravel()).reshape(g.shape)

    return step


DIRECTIONS = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "adadelta": adadelta,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamax": adamax,
    "nadam": nadam,
    "amsgrad": amsgrad,
    "radam": radam,
    "adamw": adam,
    "lookahead": lookahead,
    "lion": lion,
    "lars": lars,
    "natural": natural,
}


def train(step, theta, gradient, rates, lambdas, kind, literal=False, factor=1.0):
    """theta after 0, 1, 2, ... steps, stacked. gradient(theta, t); rates and lambdas: one number a
    step; factor: what the layer multiplies lambda by. The update equations of Loshchilov & Hutter
    (WD) and of the paper on pre-weight decay (equations 1 and 7, algorithm 2), with d = eta lambda,
    or d = lambda literally.
    """
    path = [theta := np.float64(theta)]
    for t, (eta, strength) in enumerate(zip(rates, lambdas, strict=True)):
        strength = factor * strength
        d = strength if literal else eta * strength
        if kind == "coupled":
            theta = theta - step(gradient(theta, t) + strength * theta, theta, eta)
        elif kind == "decoupled":
            theta = theta - step(gradient(theta, t), theta, eta) - d * theta
        elif kind == "realtime":
            theta = (1 - d) * (theta - step(gradient(theta, t), theta, eta))
        elif kind == "pre":
            phi = (1 - d) * theta
            theta = phi - step(gradient(phi, t), phi, eta)
        path.append(theta)
    return np.stack(path)
