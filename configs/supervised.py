"""Supervised training: `configs/supervised.py:MODEL`, on CIFAR-10 as the layer-wise
pre-weight-decay paper has it.

Its protocol (section 4): 32x32 images, mirrored with probability 1/2 and normalised by ImageNet's
statistics, batches of 512, 100 epochs at a constant rate, Adam at 1e-4 with decay 1e-2; ConvNeXt
and Swin start from ImageNet-21k weights there, which `weights` takes from a local file of timm. Not
measured at this scale: it is for a GPU, and there

    python launch.py --config configs/supervised.py:convnext_tiny --workdir runs/convnext
    --config.precision=bfloat16

The other numbers are this project's choice. 5 000 training images are held out to choose the best
epoch by.
"""

from ml_collections import ConfigDict

from ssl_jax.builders.defaults import default_supervised
from ssl_jax.errors import UserError, nearest

MODELS = {
    "resnet18": {"name": "resnet18", "width": 64},
    "convnext_tiny": {"name": "convnext_tiny", "width": 96},
    "convnext_small": {"name": "convnext_small", "width": 96},
    "convnext_base": {"name": "convnext_base", "width": 128},
    "swin_tiny": {"name": "swin_tiny", "width": 96},
    "convnet": {"name": "convnet", "width": 32},
    "mlp": {"name": "mlp", "width": 512, "depth": 2},
}


def get_config(model: str = "resnet18") -> ConfigDict:
    if model not in MODELS:
        raise UserError(f"model: got {model!r}, {nearest(model, MODELS)}")
    config = default_supervised()
    config.method = model
    config.encoder.update(MODELS[model])
    return config
