"""The same BYOL step in PyTorch, as its users run it with lightly, beside ours: `python
benchmarks/peer.py [--quick]`.

Same model, batch, loss, optimizer and number of steps, on one device, in turns. Each side prepares
its input its own
way: ours inside the compiled step, from images on the device; theirs with lightly's CIFAR
transforms in a DataLoader on all cores. Before anything is timed, both must compute the same losses
from the same weights and views.
"""

import copy
import functools
import itertools
import math
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

# PyTorch needs room on the same GPU
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import common
import jax
import numpy as np
from setup_step import TOTAL_STEPS, compiled, random_dataset

from ssl_jax.builders import pretraining
from ssl_jax.train.state import PretrainState

try:
    import torch
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import ProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import (
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, RandomSampler, default_collate
    from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3
except ImportError as error:
    print(f"error: {error}; install the peer with pip install -e '.[peer]'", file=sys.stderr)
    sys.exit(2)

IMAGES, SIDE = 50_000, 32
TOLERANCE = (1e-4, 1e-3)  # of the loss at the start, and after one step of the optimizer
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
AHEAD = 2  # batches that each worker prepares ahead, the DataLoader's default


def main() -> None:
    args = common.parse(__doc__.splitlines()[0], width=0)
    gpu = jax.default_backend() == "gpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    widths = [args.width] if args.width else [16] if args.quick else [64] if gpu else [64, 16]
    configs = [make_config(width, gpu) for width in widths]
    checks = {setting(config): check(config) for config in configs}
    refill, views = open_loader(
        random_dataset(IMAGES, SIDE).train.image, configs[0].batch_size, gpu
    )
    rows = [row for config in configs for row in measure(config, views, refill, gpu, args.quick)]
    ratio = {name: min(row["ratio"] for row in rows if row["setting"] == name) for name in checks}
    more = {
        "peer": "lightly's BYOL in PyTorch",
        "torch_threads": torch.get_num_threads(),
        "check": checks,
    }
    common.finish(args, "peer", rows, ratio=ratio, **more)
    print(
        ", ".join(
            f"{name}: ratio {value:.3g} to their faster format" for name, value in ratio.items()
        )
    )


def make_config(width: int, gpu: bool) -> Any:
    """The replication's BYOL on CIFAR-10, in this width."""
    config = common.read_config("cifar10.py:byol")
    config.encoder.width = width
    config.precision = "bfloat16" if gpu else "float32"
    return config


def setting(config) -> str:
    return f"{config.encoder.name}, width {config.encoder.width}, {config.precision}"


def measure(config, views: Iterator, refill: Callable, gpu: bool, quick: bool) -> list[dict]:
    """Return one row for each memory format of the peer; ours runs once a turn."""
    steps = (20 if quick else 200) if gpu else 3 if quick else 192 // config.encoder.width
    formats = ["channels_last", "channels_last, compiled"] if gpu else list(FORMATS)
    contenders = {"ours": compiled(config, steps, size=IMAGES).run}
    for name in formats:
        contenders[name] = their_chunk(config, views, refill, steps, name, gpu)
    times = common.alternate(contenders, repeats=5)
    ours, images = times["ours"], steps * config.batch_size
    return [
        {
            "setting": setting(config),
            "steps": steps,
            "ours img/s": images / ours["median_s"],
            "ours range": images_range(ours, images),
            "peer img/s": images / times[name]["median_s"],
            "peer range": images_range(times[name], images),
            "peer_format": name,
            "ratio": times[name]["median_s"] / ours["median_s"],
            "seconds": {"ours": ours, "peer": times[name]},
        }
        for name in formats
    ]


def images_range(times: dict, images: int) -> str:
    """Slowest to fastest repeat, in images/s."""
    return f"{images / times['max_s']:.0f} to {images / times['min_s']:.0f}"


# --- Ours -----------------------------------------------------------------------------------------


def fresh(config) -> tuple[pretraining.Parts, PretrainState]:
    """Parts and state at step 0, a function of the seed alone."""
    parts = pretraining.build(config, TOTAL_STEPS, 1, None)
    init = pretraining.make_init(parts, random_dataset(1, SIDE).description)
    return parts, jax.device_get(pretraining.fresh_state(config, init))


# --- Theirs ---------------------------------------------------------------------------------------


class Byol(nn.Module):
    """BYOL out of torchvision's and lightly's parts, with the weights of `state`; forward(two
    views) is the loss.
    """

    def __init__(self, config, state: PretrainState):
        super().__init__()
        features, projector, predictor = (
            8 * config.encoder.width,
            config.projector,
            config.predictor,
        )
        encoder, projection = (
            make_resnet18(config.encoder.width),
            make_head(features, projector.hidden, projector.out),
        )
        self.trunk = nn.Sequential(OrderedDict(encoder=encoder, projector=projection))
        self.predictor = make_head(projector.out, predictor.hidden, projector.out)
        self.target = copy.deepcopy(self.trunk)
        deactivate_requires_grad(self.target)
        self.criterion = NegativeCosineSimilarity()
        online = dict(state.params)
        copy_weights(self.predictor, online.pop("predictor"))
        copy_weights(self.trunk, online)
        copy_weights(self.target, state.target)

    def forward(self, view1, view2):
        p1, p2 = (self.predictor(self.trunk(view)) for view in (view1, view2))
        with torch.no_grad():
            t1, t2 = self.target(view1), self.target(view2)
        return self.criterion(p1, t2) + self.criterion(p2, t1)


def make_resnet18(width: int) -> nn.Module:
    """torchvision's ResNet-18 in any width, up to the pool, its stem swapped for CIFAR's."""
    layers = OrderedDict(
        stem_conv=conv3x3(3, width), stem_norm=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True)
    )
    inputs = width
    for stage, block in itertools.product(range(4), range(2)):
        outputs, stride, shortcut = width * 2**stage, 2 if stage and not block else 1, None
        if inputs != outputs:
            shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        layers[f"stage{stage + 1}_block{block + 1}"] = BasicBlock(inputs, outputs, stride, shortcut)
        inputs = outputs
    return nn.Sequential(layers | {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()})


def make_head(inputs: int, hidden: int, outputs: int) -> ProjectionHead:
    """lightly's two-layer head, its norm without affine and its output without bias, as the
    replication has them.
    """
    norm = nn.BatchNorm1d(hidden, affine=False)
    return ProjectionHead(
        [(inputs, hidden, norm, nn.ReLU(), True), (hidden, outputs, None, None, False)]
    )


OUR_NAMES = {
    "stem_norm": "stem_norm.batch",
    "bn1": "norm1.batch",
    "bn2": "norm2.batch",
    "downsample.0": "shortcut_conv",
    "downsample.1": "shortcut_norm.batch",
    "layers.0": "linear1",
    "layers.3": "linear2",
}


def our_path(name: str) -> str:
    """Where our parameter tree keeps what PyTorch calls `name`."""
    for theirs, ours in OUR_NAMES.items():
        name = name.replace(theirs, ours)
    return name.replace("weight", "scale" if "batch" in name else "kernel").replace(".", "/")


@torch.no_grad()
def copy_weights(module: nn.Module, params: Any) -> None:
    """Our parameters into `module`: every one of them, and nothing left as it was."""
    leaves = jax.tree.leaves_with_path(params)
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    for name, parameter in module.named_parameters():
        value = ours.pop(our_path(name))
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T  # HWIO to OIHW
        assert parameter.shape == value.shape, name
        parameter.copy_(torch.from_numpy(value.copy()))
    assert not ours, f"no place for {', '.join(ours)}"


def their_step(model: Byol, config, device: str, compiled: bool = False) -> Callable:
    """step(view1, view2) -> loss: forward, backward, SGD, then the target average, in our order."""
    optimizer = make_sgd(model, config.optimizer)
    forward = torch.compile(model) if compiled else model
    half = config.precision == "bfloat16"

    def step(view1, view2):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = forward(view1, view2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_momentum(model.trunk, model.target, config.target.tau)
        return loss.detach()

    return step


def make_sgd(model: Byol, options) -> torch.optim.SGD:
    """SGD with momentum; its decay is coupled, and spares the same parameters as ours."""
    groups: dict[bool, list] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[bool(re.search(options.exclude, our_path(name)))].append(parameter)
    decays = {False: options.weight_decay, True: 0.0}
    parameters = [{"params": groups[spared], "weight_decay": decays[spared]} for spared in groups]
    return torch.optim.SGD(parameters, lr=options.learning_rate, momentum=options.momentum)


class Images(torch.utils.data.Dataset):
    """Pillow images through lightly's CIFAR transforms: no blur, and no solarisation, which ours
    has not either.
    """

    def __init__(self, image: np.ndarray):
        self.image = image
        options = {"input_size": SIDE, "gaussian_blur": 0.0, "solarization_prob": 0.0}
        self.transform = BYOLTransform(BYOLView1Transform(**options), BYOLView2Transform(**options))

    def __len__(self):
        return len(self.image)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.image[index]))


def collate(made, samples: list):
    """PyTorch's own collation; tells `made` of each finished batch."""
    batch = default_collate(samples)
    made.release()
    return batch


def open_loader(image: np.ndarray, batch_size: int, gpu: bool) -> tuple[Callable, Iterator]:
    """refill(n), and an endless iterator of batches from workers on all cores.

    The workers run ahead. Were that free, a turn of the peer would begin with batches made before
    it, and end with workers that disturb our turn. So each turn of n steps ends when n more batches
    are made.
    """
    # a plain fork of a process with JAX's threads may hang
    context = torch.multiprocessing.get_context("forkserver")
    made, workers = context.Semaphore(0), len(os.sched_getaffinity(0))
    images = Images(image)
    loader = DataLoader(
        images,
        batch_size,
        # one shuffle after the other, with no pause in between
        sampler=RandomSampler(images, num_samples=2**40),
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=functools.partial(collate, made),
        pin_memory=gpu,
        drop_last=True,
        multiprocessing_context=context,
    )

    def refill(count):
        for _ in range(count):
            made.acquire()

    views = iter(loader)
    refill(AHEAD * workers)  # every turn begins, and ends, with the workers this far ahead
    return refill, views


def their_chunk(
    config, views: Iterator, refill: Callable, steps: int, name: str, gpu: bool
) -> Callable:
    """Runs `steps` steps of the peer with their input, in the memory format `name`, "FORMAT" or
    "FORMAT, compiled".
    """
    layout, _, option = name.partition(", ")
    device, layout = ("cuda" if gpu else "cpu"), FORMATS[layout]
    model = Byol(config, fresh(config)[1]).to(device, memory_format=layout)
    step = their_step(model, config, device, compiled=option == "compiled")

    def chunk():
        for _ in range(steps):
            step(
                *(view.to(device, memory_format=layout, non_blocking=True) for view in next(views))
            )
        refill(steps)
        if gpu:
            torch.cuda.synchronize()

    return chunk


# --- The same work? -------------------------------------------------------------------------------


def check(config) -> dict[str, list[float]]:
    """Losses of two steps on both sides, from the same weights and views; exits with status 1 where
    they differ.

    In float32 and on the CPU whatever is measured: a GPU's rounding would hide a real difference.
    """
    config = copy.deepcopy(config)
    config.precision = "float32"
    pair = np.random.default_rng(1).normal(size=(2, 16, SIDE, SIDE, 3)).astype(np.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        parts, state = fresh(config)
        losses = {
            "ours": our_losses(config, parts, state, pair),
            "peer": their_losses(config, state, pair),
        }
    require_same(setting(config), **losses)
    return losses


def our_losses(config, parts, state: PretrainState, pair: np.ndarray) -> list[float]:
    step = jax.jit(pretraining.build_step(config, parts, lambda keys, views: views, None))
    batch = {"image": tuple(pair), "position": np.arange(pair.shape[1])}
    losses = []
    for _ in TOLERANCE:
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return losses


def their_losses(config, state: PretrainState, pair: np.ndarray) -> list[float]:
    step = their_step(Byol(config, state), config, "cpu")
    views = torch.from_numpy(pair.transpose(0, 1, 4, 2, 3).copy())
    return [float(step(*views)) for _ in TOLERANCE]


def require_same(name: str, ours: list[float], peer: list[float]) -> None:
    """Nothing is measured of two programs that do not compute the same."""
    for step, (mine, theirs, tolerance) in enumerate(zip(ours, peer, TOLERANCE, strict=True)):
        if not math.isclose(mine, theirs, rel_tol=0, abs_tol=tolerance):
            sys.exit(
                f"error: {name}: loss after {step} steps: ours {mine:.6f}, peer {theirs:.6f}: not "
                "the same work"
            )


if __name__ == "__main__":
    main()
