"""Hard projections that make a learned predictor symmetric, applied after an optimizer step.

They are neither a loss term nor a parametrisation: biases and momentum stay as they are. Kernels
are stored as (inputs, outputs), so the matrix of a layer that acts on column vectors is its
kernel's transpose.
"""

from ssl_jax.types import Params


def symmetrise_linear(params: Params) -> Params:
    """Set W <- (W + Wᵀ) / 2 in {"linear": {"kernel": (D, D)}}.

    Tian et al. 2021, section 3, "symmetrized W_p".
    """
    kernel = params["linear"]["kernel"]
    return {**params, "linear": {**params["linear"], "kernel": (kernel + kernel.T) / 2}}


def symmetrise_mlp(params: Params) -> Params:
    """Set W1 <- V and W2 <- Vᵀ with V = (W1 + W2ᵀ) / 2.

    So the product W2 W1 = VᵀV is symmetric and positive. The kernels are linear1 (D, H) = W1ᵀ and
    linear2 (H, D) = W2ᵀ.
    """
    v = (params["linear1"]["kernel"].T + params["linear2"]["kernel"]) / 2
    return {
        **params,
        "linear1": {**params["linear1"], "kernel": v.T},
        "linear2": {**params["linear2"], "kernel": v},
    }
