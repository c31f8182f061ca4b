"""Hard projections that make a learned predictor symmetric, applied after an optimizer step.

They are neither a loss term nor a parametrisation: biases and momentum stay as they are. Kernels
are stored as (inputs, outputs), so the matrix of a layer that acts on column vectors is its
kernel's transpose.
"""

from ssl_jax.types import Params


def symmetrise_linear(params: Params) -> Params:
    """W <- (W + Wᵀ) / 2 for {"linear": {"kernel" (D, D)}}. Tian et al. 2021, section 3,
    "symmetrized W_p".
    """
    kernel = params["linear"]["kernel"]
    return {**params, "linear": {**params["linear"], "kernel": (kernel + kernel.T) / 2}}


def symmetrise_mlp(params: Params) -> Params:
    """V = (W1 + W2ᵀ) / 2, W1 <- V, W2 <- Vᵀ, so that the product W2 W1 = VᵀV is symmetric and
    positive.

    Kernels: linear1 (D, H) = W1ᵀ, linear2 (H, D) = W2ᵀ.
    """
    v = (params["linear1"]["kernel"].T + params["linear2"]["kernel"]) / 2
    return {
        **params,
        "linear1": {**params["linear1"], "kernel": v.T},
        "linear2": {**params["linear2"], "kernel": v},
    }
