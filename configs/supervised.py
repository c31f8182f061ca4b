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

from configs.defaults import add_optimizer
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
    config = ConfigDict()
    config.task = "supervised"
    config.method = model  # a label for tables and headers; the fields below decide what happens
    config.seed = 0
    config.epochs = 100
    config.batch_size = 512  # over all devices together
    config.init = "pytorch"  # pytorch | glorot | gaussian | he | orthogonal
    config.precision = "float32"  # float32 | bfloat16 (forward and backward only)
    config.devices = 0  # 0: all
    config.sync_batch_norm = True  # BatchNorm statistics over all devices, or each its own
    config.steps_per_call = "auto"  # steps in one compiled call: auto is 1 on the CPU, 10 elsewhere
    config.log_every = 50  # steps
    config.eval_every = 1  # epochs
    config.checkpoint_every = 5  # epochs; 0: only at the end
    config.loss = "softmax"  # softmax | squared | hinge
    # file of timm's weights to start from (safetensors, or a state dict), "": none
    config.weights = ""
    # of a cyclical schedule: an ensemble of the networks at the ends of its cycles
    config.snapshots = False

    config.data = ConfigDict()
    config.data.name = "cifar10"  # digits, or an image-classification set of TensorFlow Datasets
    config.data.data_dir = ""  # where TFDS keeps its sets; "": its own default
    config.data.train_size = 0  # the first so many training images; 0: all
    config.data.image_size = 0  # side in pixels of what the network sees; 0: as in the set
    config.data.resident = "auto"  # auto | yes | no: images on the device, or streamed to it
    config.data.validation_size = 5000  # the last so many of them are held out; 0: none
    config.data.random_labels = 0.0  # share of the training labels that is drawn anew, uniformly

    config.encoder = ConfigDict(ENCODER | MODELS[model])

    config.augment = ConfigDict()
    config.augment.flip = 0.5  # probability
    # pixels around the image that a crop of its size may fall into; 0: no crop
    config.augment.crop_padding = 0
    # probability of brightness, contrast, saturation and hue, as in the views of CIFAR
    config.augment.jitter = 0.0
    config.augment.cutout = 0  # side of the square in pixels; 0: none
    # standard deviation of Gaussian noise, in units of the normalised image
    config.augment.noise = 0.0
    config.augment.mixup = 0.0  # alpha of its Beta distribution; 0: none
    config.augment.cutmix = 0.0  # alpha of its Beta distribution; 0: none
    config.augment.augmix = False
    config.augment.augmix_severity = 3
    # weight of AugMix's Jensen-Shannon divergence; 0: one version alone
    config.augment.consistency = 12.0
    config.augment.mean = (0.485, 0.456, 0.406)
    config.augment.std = (0.229, 0.224, 0.225)

    config.head = ConfigDict()
    config.head.dropout = 0.0

    add_optimizer(config)
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-2
    config.optimizer.decay = "decoupled"
    config.optimizer.exclude = ""

    # reduces the learning rate where what it watches stands still
    config.plateau = ConfigDict()
    # validation_loss (as in the lectures) | validation_accuracy | loss, of the training
    config.plateau.watch = "validation_loss"
    config.plateau.patience = 0  # evaluations without progress; 0: never
    config.plateau.factor = 0.1
    config.plateau.threshold = 1e-4  # what counts as progress
    config.plateau.cooldown = 0  # evaluations that do not count after a reduction
    config.plateau.smallest = 0.0  # share of the rate below which it is not reduced

    config.stopping = ConfigDict()  # ends the run where what it watches stands still
    config.stopping.watch = "validation_loss"  # | validation_accuracy | loss, of the training
    config.stopping.patience = 0  # evaluations without progress; 0: never
    config.stopping.threshold = 0.0
    return config


ENCODER = {
    "depth": 0,  # layers, or blocks a stage; 0: the architecture's own
    "stem": "cifar",  # resnet: cifar (3x3, stride 1) | imagenet (7x7, stride 2, max-pool)
    "norm": "auto",  # auto: the architecture's own | batch | layer | group | instance | none
    # auto: the architecture's own | sigmoid | tanh | relu | leaky_relu | gelu
    "activation": "auto",
    "residual": True,  # False: a ResNet without its shortcuts
    "standardise": False,  # weight standardisation
    "dropout": 0.0,  # of an MLP's hidden layers
}
