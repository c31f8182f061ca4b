"""The cells of the sweeps: which runs make up a table, what was published of each, and what each changes.

Published numbers: Höppe et al. 2022 (ReScience C), tables 1 to 3, linear accuracy in %, one unseeded run each; Tian et
al. 2021 (arXiv 2102.06810), table 8, mean and standard deviation of five. What is doubtful about one is its `note`.

Scale "full" is the published protocol. Scale "mini" is for two CPU cores. It was fixed before any of its results was
seen, and no field of it was chosen by an accuracy of a sweep:

* `configs/cifar10_small.py`: the first 20 000 images, a convnet of width 32, 6 epochs of 156 steps, rate 0.05 with a
  cosine, decay 0.02, tau 0.99, the replication's probe; the dynamics recorded every 26 steps.
* Where tables 1 and 2 have the decay 4e-4, mini has its own, 0.02: the same rate x decay x steps.
* Table 3: rate 0.2 and predictor's rate 2 as published, under mini's cosine. The predictor's decay, where there is one,
  is 0.0337, so that rate x decay x steps is kept: 2 x 4e-4 x 39 390 = 31.5 = 1 (the mean of a cosine from 2) x 0.0337
  x 936. Probe of 50 epochs, as published.
* Table 8: 100, 300 and 500 epochs become 6, 18 and 30; the original's loss, initialisation, biases, masks and probe.
* Optimizers: rates by custom, none tuned. The decay of AdamW and Lion takes the same share of a weight a step as L2
  under heavy ball does in the long run, eta lambda / (1 - mu); Adam and RMSprop have L2 as momentum has it.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import cifar10, cifar10_small
from configs.methods import DECAYS, METHODS

SCALES = ("mini", "full")
FILES = {"mini": "configs/cifar10_small.py", "full": "configs/cifar10.py"}


class Cell(NamedTuple):
    """One run of a table. `published`: linear accuracy in %; `overrides`: by scale, what it changes of the sweep's."""

    name: str
    table: str
    row: str
    column: str
    published: float | None
    published_std: float | None
    note: str
    overrides: dict[str, dict]


def cell(table, name, row, column, published=None, std=None, note="", **changes) -> Cell:
    """A cell whose `changes` (mini=, full=, both=) are given field by field."""
    overrides = {scale: changes.get("both", {}) | changes.get(scale, {}) for scale in SCALES}
    return Cell(name, table, row, column, published, std, note, overrides)


def method(name: str, label: str | None = None) -> dict:
    """The fields of a method of configs/methods.py; `label`: what the run is called, if not by the method."""
    return {"method": label or name} | METHODS[name]


# --- Höppe et al. 2022 --------------------------------------------------------------------------------------------

UNCLEAR = "the published code's README gives 85.7 to the predictor that is not symmetric"
NEVER_SET = "as committed, that run never set its predictor: the algorithm is that of linear_noema"

TABLE1 = [
    cell("table1", name, row, column, published, note=note, both=method(name))
    for name, row, column, published, note in (
        ("byol_sym", "EMA", "symmetric", 85.7, UNCLEAR),
        ("byol", "EMA", "regular", 84.2, UNCLEAR),
        ("simsiam_sym", "no EMA", "symmetric", 20.3, ""),
        ("simsiam", "no EMA", "regular", 79.4, ""),
    )
]

TABLE2 = [
    cell("table2", name, row, column, published, note=note, both=method(name))
    for name, row, column, published, note in (
        ("linear", "EMA", "SGD", 83.3, ""),
        ("directpred", "EMA", "DirectPred", 84.7, ""),
        ("directpred5", "EMA", "DirectPred, every 5 steps", 84.1, ""),
        ("linear_noema", "no EMA", "SGD", 77.8, ""),
        ("directpred_noema", "no EMA", "DirectPred", 78.6, NEVER_SET),
    )
]

# "wdp": weight decay on the predictor alone; "nowd": on nothing.
PREDICTOR_DECAY = {"wdp": {"mini": 0.0337, "full": 4e-4}, "nowd": {"mini": 0.0, "full": 0.0}}


def decay_cell(base: str, decay: str, row: str, published: float) -> Cell:
    column = "symmetric" if base.endswith("_sym") else "regular"
    name, both = f"{base}_{decay}", {"optimizer.weight_decay": 0.0}
    own = {scale: {"optimizer.predictor.weight_decay": value} for scale, value in PREDICTOR_DECAY[decay].items()}
    return cell("table3", name, row, column, published, both=method(base, name) | both, **own)


TABLE3 = [
    decay_cell(base, decay, row, published)
    for base, decay, row, published in (
        ("byol_sym", "wdp", "EMA, decay of the predictor alone", 81.34),
        ("byol", "wdp", "EMA, decay of the predictor alone", 81.69),
        ("simsiam_sym", "wdp", "no EMA, decay of the predictor alone", 79.1),
        ("simsiam", "wdp", "no EMA, decay of the predictor alone", 81.39),
        ("byol_sym", "nowd", "EMA, no decay", 80.78),
        ("byol", "nowd", "EMA, no decay", 80.42),
        ("simsiam_sym", "nowd", "no EMA, no decay", 20.27),
        ("simsiam", "nowd", "no EMA, no decay", 79.22),
    )
]

CHART = "read off a bar chart of the published code, to about 0.1"
DIRECTCOPY = [
    cell("directcopy", name, row, "DirectCopy", published, note=CHART, both=method(name))
    for name, row, published in (("directcopy", "EMA", 84.6), ("directcopy_noema", "no EMA", 78.3))
]

# --- Tian et al. 2021, CIFAR-10 -----------------------------------------------------------------------------------

ORIGINAL = {
    "init": "pytorch",
    "loss_scale": 2.0,
    "projector.output_bias": True,
    "optimizer.exclude": "",
    "probe.protocol": "original",
}
LENGTHS = {100: 6, 300: 18, 500: 30}  # epochs: full, mini
BEST_EPOCH = "published is the best of the probe's 50 epochs on the test set: original_best_test_epoch_accuracy"
NOT_SAID = f"{BEST_EPOCH}; not said there whether this predictor is kept symmetric"

ORIGINAL_TABLE8 = [
    cell(
        *("original_table8", f"{name}_{epochs}", row, f"{epochs} epochs", published, std),
        note=NOT_SAID if name == "linear" else BEST_EPOCH,
        both=method(name),
        mini={"epochs": LENGTHS[epochs]},
        full={"epochs": epochs},
    )
    for epochs, numbers in {
        100: ((85.21, 0.23), (84.93, 0.29), (84.49, 0.20)),
        300: ((88.88, 0.15), (88.83, 0.10), (88.57, 0.15)),
        500: ((89.52, 0.04), (89.56, 0.13), (89.33, 0.27)),
    }.items()
    for (name, row), (published, std) in zip(
        (("directpred", "DirectPred"), ("directpred5", "DirectPred, every 5 steps"), ("linear", "SGD")),
        numbers,
        strict=True,
    )
]

# --- Nothing published --------------------------------------------------------------------------------------------


def optimizer(scale: str, name: str) -> dict:
    """The optimizer with its rate and decay; momentum's are the base's own."""
    base = {"mini": cifar10_small, "full": cifar10}[scale].get_config().optimizer
    rest = 1 - base.momentum
    share = base.learning_rate * base.weight_decay / rest  # of a weight, taken off it a step in the long run
    changes = {
        "sgd": {"learning_rate": base.learning_rate / rest},
        "rmsprop": {"learning_rate": 1e-3},
        "adam": {"learning_rate": 1e-3},
        "adamw": {"learning_rate": 1e-3, "weight_decay": share / 1e-3, "decay": "decoupled"},
        "lion": {"learning_rate": 1e-4, "weight_decay": share / 1e-4, "decay": "decoupled"},
        "lars": {"learning_rate": 1.0, "weight_decay": 1.5e-6},  # BYOL's decay
    }.get(name, {})
    fields = {f"optimizer.{field}": value for field, value in ({"name": name} | changes).items()}
    return {"method": f"byol_{name}"} | fields


OPTIMISERS = [
    cell("optimisers", name, name, "byol", **{scale: optimizer(scale, name) for scale in SCALES})
    for name in ("momentum", "nesterov", "sgd", "rmsprop", "adam", "adamw", "lion", "lars")
]


def pull(scale: str, kind: str) -> dict:
    """What `configs.methods.apply_decay` changes."""
    base = {"mini": cifar10_small, "full": cifar10}[scale].get_config().optimizer
    return {"optimizer.weight_decay": base.weight_decay / (1 - base.momentum)} | DECAYS[kind]


DECAY_SSL = [
    cell(
        *("decay_ssl", f"{name}-{kind}", name, kind),
        both=method(name, f"{name}-{kind}"),
        **{scale: pull(scale, kind) for scale in SCALES},
    )
    for name in ("byol", "simsiam")
    for kind in DECAYS
]

TABLES: dict[str, list[Cell]] = {
    "table1": TABLE1,
    "table2": TABLE2,
    "table3": TABLE3,
    "original_table8": ORIGINAL_TABLE8,
    "directcopy": DIRECTCOPY,
    "optimisers": OPTIMISERS,
    "decay_ssl": DECAY_SSL,
}
# What a whole table changes of the scale's base, for all its cells.
RATES = {"optimizer.learning_rate": 0.2, "optimizer.predictor.learning_rate": 2.0, "probe.epochs": 50}
CHANGES: dict[str, dict[str, dict]] = {
    "table1": {"mini": {"probe.epochs": 100}, "full": {"probe.epochs": 100}},
    "table2": {"mini": {"probe.epochs": 100}, "full": {"probe.epochs": 100}},
    "table3": {"mini": RATES, "full": RATES | {"epochs": 101}},
    "original_table8": {"mini": ORIGINAL, "full": ORIGINAL},
}


def nested(fields: dict) -> dict:
    """{"a.b": 1} -> {"a": {"b": 1}}"""
    tree: dict = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree


def sweep_config(name: str) -> ConfigDict:
    """The configuration of the sweep `name`, every field of every run in it."""
    config = ConfigDict()
    config.task = "sweep"
    config.sweep = name
    config.scale = "mini"  # mini | full
    config.seeds = (0, 1, 2)
    config.cells = ",".join(cell.name for cell in TABLES[name])  # which of them, and in which order
    config.minutes = 0.0  # after so many, the cell at work is saved and left, to be gone on with; 0: no end
    config.wait = True  # for cells at which other processes are, to take them over should those end; False: leave them
    config.store = "results"  # folder of the finished cells' results; "": none is kept
    config.again = False  # run, and store anew, what is in the store but not in the work directory
    config.data_dir = ""  # data.data_dir of every cell; "": as in mini and full
    config.files = ConfigDict(FILES)  # what mini and full start from
    config.mini, config.full = cifar10_small.get_config(), cifar10.get_config()
    config.mini.dynamics.every = 26
    config.full.dynamics.every = 390  # once an epoch
    for scale in SCALES:
        config[scale].update_from_flattened_dict(CHANGES.get(name, {}).get(scale, {}))
    config.overrides = ConfigDict(
        {scale: {cell.name: nested(cell.overrides[scale]) for cell in TABLES[name]} for scale in SCALES}
    )
    return config
