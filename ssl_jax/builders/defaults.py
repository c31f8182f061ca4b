"""The table of fields: every field of every task that has a network, its type and its default.

A configuration file changes some values of a table; what a table does not name is no field. A
stored configuration is read against it (`trained_run`): a field that it lacks has its default.

The defaults of pretraining are BYOL as the replication ran it on CIFAR-10: Höppe et al. 2022
(ReScience C), section 4; where the text is silent, the published code of the replication or of the
original decides (each case is in the comments).
"""

# A type checker does not know the fields of a ConfigDict.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import runpy
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssl_jax.builders.configurations import HOME, packaged_configs
from ssl_jax.types import Config


def default_config() -> Config:
    """Return every field of pretraining."""
    config: Config = ConfigDict()
    # pretrain | probe | views (a picture grid of augmented views, nothing trained)
    config.task = "pretrain"
    config.method = "byol"  # a label for tables and headers; the fields below decide what happens
    config.seed = 0
    config.epochs = 100
    config.batch_size = 128  # over all devices together; 0: chosen, at most 128
    config.init = "glorot"  # glorot (replication) | pytorch (original) | gaussian | he | orthogonal
    config.precision = "float32"  # float32 | bfloat16 (forward and backward only)
    # cosine | euclidean, as in the linear theory | iso_cosine, iso_euclidean: IsoLoss of either
    config.loss = "cosine"
    config.loss_scale = 1.0  # c in c * loss a direction: 1 replication, 2 original code
    # weights of what is added to the loss, before loss_scale; 0: nothing is
    config.regularisers = ConfigDict()
    # VICReg's hinge on the standard deviation of the projections
    config.regularisers.variance = 0.0
    config.devices = 0  # 0: all
    config.accumulate = 1  # micro-batches that a batch passes in: less memory, as many examples
    config.sync_batch_norm = True  # BatchNorm statistics over all devices, or each its own
    config.steps_per_call = "auto"  # steps in one compiled call: auto is 1 on the CPU, 10 elsewhere
    config.log_every = 50  # steps
    config.eval_every = 5  # epochs; 0: only at the end
    config.checkpoint_every = 5  # epochs; 0: only at the end
    config.tensorboard = False  # whether an event file has the rows of metrics.csv, too
    add_weights(config)

    config.dynamics = ConfigDict()
    config.dynamics.every = 0  # steps between the records of dynamics.npz; 0: none are made

    add_data(config)

    config.views = ConfigDict()
    # cifar | stl10 | photo | digits; a field below, where given, overrides the recipe's
    config.views.recipe = "cifar"
    # side in pixels at which views are cut; validation and probes see the central crop of that
    # size. 0: as stored, uncropped; -1: chosen, 224 of 256 stored ones, or smaller ones as they are
    config.views.size = 0
    config.views.crop_scale = placeholder(tuple)  # smallest and largest share of the image's area
    config.views.crop_ratio = placeholder(tuple)  # smallest and largest width / height
    config.views.flip = placeholder(float)  # probability
    config.views.jitter = placeholder(float)  # probability of the next four
    config.views.brightness = placeholder(float)
    config.views.contrast = placeholder(float)
    config.views.saturation = placeholder(float)
    config.views.hue = placeholder(float)
    config.views.gray = placeholder(float)  # probability
    config.views.blur = placeholder(float)  # probability
    config.views.blur_second = placeholder(float)  # the same of the second view
    config.views.blur_kernel = placeholder(int)  # width in pixels; 0: a tenth of the view's side
    config.views.solarize = placeholder(float)  # probability
    config.views.solarize_second = placeholder(float)  # the same of the second view
    # None: the recipe's, or measured on the images for training where it has none
    config.views.mean = placeholder(tuple)
    config.views.std = placeholder(tuple)

    config.encoder = ConfigDict()
    config.encoder.name = "resnet18"
    config.encoder.width = 64
    # cifar (3x3, stride 1) | imagenet (7x7, stride 2, max-pool) | auto: cifar up to 64 pixels
    config.encoder.stem = "cifar"
    # auto: the architecture's own | batch | layer | group | instance | none
    config.encoder.norm = "auto"
    # auto: the architecture's own | sigmoid | tanh | relu | leaky_relu | gelu
    config.encoder.activation = "auto"
    config.encoder.depth = 0  # layers, or blocks a stage; 0: the architecture's own
    config.encoder.residual = True  # False: a ResNet without its shortcuts
    config.encoder.standardise = False  # weight standardisation
    config.encoder.dropout = 0.0  # of an MLP's hidden layers

    config.projector = ConfigDict()
    config.projector.hidden = 512
    config.projector.out = 128
    config.projector.output_bias = False  # replication: off; original: on
    # of the next two the predictor's are the same: batch | layer | group | none, without affine
    config.projector.norm = "batch"
    config.projector.standardise = False  # weight standardisation

    config.predictor = ConfigDict()
    # mlp | linear | direct_pred | direct_copy | direct_set | optimal
    config.predictor.kind = "mlp"
    config.predictor.hidden = 512  # mlp
    config.predictor.symmetric = False  # mlp, linear: projected to symmetric after each step
    # direct_*, optimal: set every so many steps, trained by the optimizer in between
    config.predictor.every = 1
    # direct_*, optimal: first of those steps, from 0; the replication's is every - 1
    config.predictor.phase = 0
    config.predictor.eps = 0.1  # direct_*
    # direct_pred: relative (original code) | clipped (replication's) | literal (as printed)
    config.predictor.eps_mode = "relative"
    config.predictor.centre = False  # direct_*: from the correlation less its mean's part
    # direct_set: power of the eigenvalues; 0.5 is that of direct_pred, 1 that of direct_copy
    config.predictor.power = 0.5
    # direct_set: by which the eigenvalues are divided: max (direct_pred's) | frobenius
    # (direct_copy's) | trace | none
    config.predictor.norm = "max"
    config.predictor.ridge = 0.01  # optimal: in units of the correlation's mean eigenvalue
    # how much of the old correlation is kept each step; above 0.5 what is measured keeps 0.3
    config.predictor.rho = 0.3

    config.target = ConfigDict()
    config.target.tau = 0.996  # 0: no average, the target is the online network (SimSiam)
    config.target.schedule = "constant"  # constant | cosine (rises to 1)

    add_optimizer(config)
    config.optimizer.predictor = ConfigDict()
    config.optimizer.predictor.learning_rate = placeholder(float)  # None: as above
    config.optimizer.predictor.weight_decay = placeholder(float)  # None: as above

    config.probe = ConfigDict()
    config.probe.protocol = "seed"  # seed | original | both
    config.probe.epochs = 0  # of the linear probe; 0: as the protocol has it (100, 50)
    # of the probes' initialisation, shuffles and label draws; None: the run's
    config.probe.seed = placeholder(int)
    config.probe.loss = "softmax"  # softmax | squared | hinge, of the replication's protocol
    config.probe.ridge = True
    # penalty of the logistic probe that Newton's method fits; 0: none is fitted
    config.probe.newton_l2 = 0.0
    config.probe.newton_steps = 8
    config.probe.knn_k = 200  # 0: the root of the number of images in the bank, at most 200
    config.probe.knn_temperature = 0.1
    # so many training images (splits.choose), on which kNN and the label-free measures are taken;
    # 0: a tenth, at most 2000
    config.probe.validation_size = 2000
    # what chooses the best checkpoint: knn | rankme | alpha_req | lidar | alignment | uniformity |
    # auto (knn where there are labels, rankme where not)
    config.probe.best = "auto"
    config.probe.random_init = True  # the same probes on the untrained encoder
    config.probe.few_labels = 0  # labels a class of the few-label probe; 0: none
    config.probe.few_label_draws = 20
    return config


def add_weights(config: Config) -> None:
    """Add the fields of what a run starts from, which every task that trains has."""
    # "": drawn from the seed; or a file of an encoder's weights (safetensors, or a state dict of
    # PyTorch), an exported folder, or the work directory of a run that trains
    config.weights = ""
    config.weights_step = "newest"  # of a work directory: newest | best | the number of a step


def add_data(config: Config) -> None:
    """Add the fields of `data` that every task which trains has."""
    config.data = ConfigDict()
    # folder | parquet | tar | digits | cifar10, ...: an image set of TensorFlow Datasets
    config.data.name = "cifar10"
    # where the pictures are, or the set's own archive, or where TFDS keeps its sets; "": TFDS's own
    config.data.data_dir = ""
    config.data.train_size = 0  # so many training images (splits.choose); 0: all
    # side in pixels that images are stored at; 0: as in the set, or chosen where they differ
    config.data.image_size = 0
    # auto | none; for data.name=folder also folders, or a CSV or Parquet file with the columns path
    # and label
    config.data.labels = "auto"
    # share of the labelled images that is drawn, by class, where the set has no split for the test
    config.data.test_share = 0.1
    config.data.test_split = ""  # split for the test; "": test, else validation, else a draw
    # crop (largest central square) | pad | squash: how a picture becomes a square
    config.data.fit = "crop"
    # red, green and blue, 0 to 255: what lies under transparent pixels and around padded pictures
    config.data.background = (0, 0, 0)
    config.data.damaged = "error"  # error | skip: what is done about pictures that do not decode
    # auto | yes | no (images on the device, or streamed to it) | encoded (decoded while training)
    config.data.resident = "auto"


def add_other_data(config: Config) -> None:
    """Add the fields of `data` that name another set than a run was trained on."""
    config.data = ConfigDict()
    # folder | parquet | tar | digits | cifar10, ..., as pretraining takes it; "": the run's own set
    config.data.name = ""
    # where it is, as pretraining takes it; "": where the run had its own, or where TFDS keeps sets
    config.data.data_dir = ""
    # of a set that is named; pretraining says what they mean
    config.data.train_size = 0
    config.data.labels = "auto"
    config.data.test_share = 0.1
    config.data.test_split = ""
    config.data.damaged = "error"


def add_optimizer(config: Config) -> None:
    """Add the sections `optimizer` and `schedule`, which every task that trains has."""
    config.optimizer = ConfigDict()
    # sgd | momentum | nesterov | adagrad | adadelta | rmsprop | adam | adamax | nadam | amsgrad |
    # radam | adamw | lookahead | lion | lars | natural
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = 0.03
    config.optimizer.momentum = 0.9  # momentum, nesterov, lars, and Lookahead's inner one
    config.optimizer.weight_decay = 4e-4
    # Where in the step the decay acts: coupled (L2) | decoupled (WD) | realtime (RWD) | pre (PWD) |
    # auto (decoupled for adamw and lion, coupled for the others).
    config.optimizer.decay = "coupled"
    # lr: a step takes learning_rate * weight_decay of a weight | literal
    config.optimizer.decay_scale = "lr"
    # "": all layers alike | i/n | mean (2i/(n+1)) | max (2(i-1)/(n-1))
    config.optimizer.layerwise = ""
    # The replication decays kernels and BatchNorm's affine parameters, not the biases of linear
    # layers.
    config.optimizer.exclude = r"linear\d*/bias"
    config.optimizer.clip_value = 0.0  # largest entry of a gradient; 0: not clipped
    config.optimizer.clip_norm = 0.0  # largest norm of the whole gradient; 0: not clipped
    config.optimizer.options = ConfigDict()  # of the optimizers that know them; None: its own
    for name, default in OPTIONS.items():
        config.optimizer.options[name] = placeholder(default)

    config.schedule = ConfigDict()
    # constant | linear | step | cosine | polynomial | triangular | triangular2 | exp_range | sgdr
    config.schedule.name = "constant"
    config.schedule.warmup_epochs = 0.0  # may be a fraction
    # the weight decay's own schedule, by the same names and fields
    config.schedule.decay = "constant"
    # of linear, cosine, polynomial, sgdr: last value, as a share of the peak
    config.schedule.end = placeholder(float)
    config.schedule.power = placeholder(float)  # of polynomial
    config.schedule.factor = placeholder(float)  # of step: multiplies the rate ...
    config.schedule.every = placeholder(float)  # ... every so many epochs
    # of the cyclical ones and sgdr: epochs of the first cycle
    config.schedule.cycle = placeholder(float)
    # of sgdr: each cycle is so many times as long (T_mult)
    config.schedule.growth = placeholder(float)
    # of the cyclical ones: lowest value, as a share of the peak
    config.schedule.low = placeholder(float)
    config.schedule.gamma = placeholder(float)  # of exp_range: factor a step


# ssl_jax/optim/directions.py says which optimizer takes which, what they mean, and their defaults.
OPTIONS = {
    "b1": float,  # Adam and its variants, Lion
    "b2": float,
    "eps": float,
    "rho": float,  # Adadelta, RMSprop, natural
    "initial": float,  # Adagrad
    "dampening": float,  # momentum
    "heavy_ball": float,  # RMSprop: its momentum
    "inside": bool,  # momentum: the learning rate inside the buffer
    "trust": float,  # LARS
    "damping": float,  # natural
    "block": int,
    "inner": str,  # Lookahead
    "period": int,
    "slow": float,
}


def default_supervised() -> Config:
    """Return every field of supervised training: the layer-wise pre-weight-decay paper's protocol.

    `configs/supervised.py` says which numbers are the paper's.
    """
    config: Config = ConfigDict()
    config.task = "supervised"
    config.method = "resnet18"  # a label for tables and headers
    config.seed = 0
    config.epochs = 100
    config.batch_size = 512  # over all devices together
    config.init = "pytorch"  # pytorch | glorot | gaussian | he | orthogonal
    config.precision = "float32"  # float32 | bfloat16 (forward and backward only)
    config.devices = 0  # 0: all
    config.accumulate = 1  # micro-batches that a batch passes in: less memory, as many examples
    config.sync_batch_norm = True  # BatchNorm statistics over all devices, or each its own
    config.steps_per_call = "auto"  # steps in one compiled call: auto is 1 on the CPU, 10 elsewhere
    config.log_every = 50  # steps
    config.eval_every = 1  # epochs
    config.checkpoint_every = 5  # epochs; 0: only at the end
    config.tensorboard = False  # whether an event file has the rows of metrics.csv, too
    config.loss = "softmax"  # softmax | squared | hinge
    add_weights(config)
    # of a cyclical schedule: an ensemble of the networks at the ends of its cycles
    config.snapshots = False

    add_data(config)
    config.data.validation_size = 5000  # so many of them are held out; 0: none
    # share of the training images that is trained on, drawn by seed and by class; the others are
    # left out, as if nobody had labelled them
    config.data.labelled_share = 1.0
    config.data.random_labels = 0.0  # share of the training labels that is drawn anew, uniformly

    config.encoder = ConfigDict()
    config.encoder.name = "resnet18"
    config.encoder.width = 64
    config.encoder.depth = 0  # layers, or blocks a stage; 0: the architecture's own
    config.encoder.stem = "cifar"  # cifar (3x3, stride 1) | imagenet (7x7, stride 2, max-pool)
    # auto: the architecture's own | batch | layer | group | instance | none
    config.encoder.norm = "auto"
    # auto: the architecture's own | sigmoid | tanh | relu | leaky_relu | gelu
    config.encoder.activation = "auto"
    config.encoder.residual = True  # False: a ResNet without its shortcuts
    config.encoder.standardise = False  # weight standardisation
    config.encoder.dropout = 0.0  # of an MLP's hidden layers

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


def default_probe() -> Config:
    """Return every field of the task that evaluates a checkpoint."""
    config: Config = ConfigDict()
    config.task = "probe"
    config.checkpoint = ""  # the work directory of a pretraining run
    config.step = "newest"  # which of its checkpoints: a number of steps | newest | best
    config.data_dir = ""  # where the run's data is now; "": where the run had it
    # sets to probe on: data.name takes several with commas between them, and data.data_dir then
    # one place for all, or as many
    add_other_data(config)
    config.probe = default_config().probe
    config.probe.protocol = "both"
    return config


def default_export() -> Config:
    """Return every field of the task that writes an encoder for other programs."""
    config: Config = ConfigDict()
    config.task = "export"
    config.checkpoint = ""  # the work directory of a run, pretrained or supervised
    config.step = "newest"  # which of its checkpoints: newest | best | the number of a step
    config.license = ""  # identifier for the model card, such as apache-2.0; "": the card has none
    return config


def default_embed() -> Config:
    """Return every field of the task that writes the features of pictures."""
    config: Config = ConfigDict()
    config.task = "embed"
    config.checkpoint = ""  # the work directory of a run that pretrained, or trained on labels
    config.step = "newest"  # which of its checkpoints: a number of steps | newest | best
    add_other_data(config)
    # what is written: parquet, which always is, and npz, csv; several with commas between them
    config.format = "parquet"
    config.map = "pca"  # pca | umap (takes umap-learn) | none: map.html
    config.map_images = 2000  # most pictures on the map, drawn by the seed
    config.seed = 0
    return config


TABLES: dict[str, Callable[[], Config]] = {
    "pretrain": default_config,
    "views": default_config,
    "supervised": default_supervised,
    "probe": default_probe,
    "export": default_export,
    "embed": default_embed,
}


def defaults_of(task: str) -> dict[str, Any]:
    """Return every field of a task at its default, as a nested dict."""
    return TABLES[task]().to_dict()


def defaults_in(file: str) -> dict[str, Any]:
    """Return what a configuration file, such as "configs/cifar10.py", has where nothing is set.

    {} where there is no such file.
    """
    path = HOME / file
    if not path.is_file():
        return {}
    with packaged_configs():
        return runpy.run_path(str(path))["get_config"]().to_dict()
