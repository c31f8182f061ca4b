"""What the experiments on weight decay share: CIFAR-10 at a scale for two CPU cores, and a small
network.

The protocol is that of the layer-wise pre-weight-decay paper (section 4): images mirrored with
probability 1/2 and nothing else, normalised by ImageNet's statistics, a constant learning rate. Its
networks start from ImageNet-21k weights and take some 9 800 steps of 512 images; here they start
from scratch and take some hundred of 128. A file of timm's weights to start from, one for each
architecture: --config.weights.convnext_tiny=FILE.
"""

from ml_collections import ConfigDict

SCALES = ("small", "full")
WITH_WEIGHTS = ("convnext_tiny", "convnext_small", "convnext_base", "swin_tiny")


def base(experiment: str) -> ConfigDict:
    config = ConfigDict()
    config.task = "experiment"
    config.experiment = experiment
    config.seed = 0  # the first one
    config.seeds = 2
    config.epochs = 10
    config.batch_size = 128
    config.init = "pytorch"  # pytorch | glorot | gaussian | he | orthogonal
    config.precision = "float32"  # float32 | bfloat16 (forward and backward only)
    # members in one call: auto is 1 on a CPU, 32 elsewhere (lower it if memory runs out)
    config.together = "auto"
    config.workers = "auto"  # calls at once: auto is one for each core of a CPU, 1 elsewhere
    config.layerwise = "mean"  # the rule of LPWD: mean (2i/(n+1)) | max (2(i-1)/(n-1)) | i/n

    config.data = ConfigDict()
    config.data.name = "cifar10"  # digits, or an image-classification set of TensorFlow Datasets
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 5000  # the first so many training images; 0: all
    # the last so many of them: what is chosen, is chosen by these
    config.data.validation_size = 1000
    config.data.test_size = 5000  # so many test images (splits.choose); 0: all
    config.data.image_size = 0  # side in pixels; 0: as in the set

    config.encoder = ConfigDict()
    config.encoder.name = "convnet"
    config.encoder.width = 16
    config.encoder.depth = 0  # layers, or blocks a stage; 0: the architecture's own
    # auto: the architecture's own | batch | layer | group | instance | none
    config.encoder.norm = "auto"
    # auto: the architecture's own | sigmoid | tanh | relu | leaky_relu | gelu
    config.encoder.activation = "auto"

    # files of timm's weights to start from, by architecture (safetensors, or a state dict);
    # "": none
    config.weights = ConfigDict(dict.fromkeys(WITH_WEIGHTS, ""))

    config.augment = ConfigDict()
    config.augment.flip = 0.5
    config.augment.crop_padding = 0  # pixels; 0: no crop
    config.augment.mean = (0.485, 0.456, 0.406)
    config.augment.std = (0.229, 0.224, 0.225)

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.momentum = 0.9  # of optimizers that have it
    # lr: a step takes learning rate * decay of a weight | literal: decay
    config.optimizer.decay_scale = "lr"
    # regular expression of parameters that do not decay; "": all decay, as in the paper
    config.optimizer.exclude = ""
    return config


def full_scale(config: ConfigDict) -> ConfigDict:
    """The paper's sizes: all images, 100 epochs of batch 512; from scratch unless `weights` has
    files. For a GPU; not measured.
    """
    config.epochs = 100
    config.batch_size = 512
    config.data.train_size = 0
    config.data.validation_size = 5000
    config.data.test_size = 0
    config.encoder.name = "convnext_tiny"
    config.encoder.width = 96
    config.together = "1"  # one such network fills a device
    return config
