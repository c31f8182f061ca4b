"""The cells of the sweeps: which runs make up a table, and what each changes of the scale's
configuration.

Which cells a published table has, with its numbers and what is doubtful about them:
ssl_jax/reports/replication/published.py.

Scale "full" is the published protocol. Scale "midi" (`configs/cifar10_midi.py`) is the same with a
narrower network and 30 epochs, and 30, 90 and 150 for Table 8's. Scale "mini" is for two CPU cores.
It was fixed before any of its results was seen, and no field of it was chosen by an accuracy of a
sweep, but for three cells of noema:

* `configs/cifar10_small.py`: the first 20 000 images, a convnet of width 32, 6 epochs of 156 steps,
  rate 0.05 with a cosine, decay 0.02, tau 0.99, the replication's probe; the dynamics recorded
  every 26 steps.
* Where tables 1 and 2 have the decay 4e-4, mini has its own, 0.02: the same rate x decay x steps.
* Table 3: rate 0.2 and predictor's rate 2 as published, under mini's cosine. The predictor's decay,
  where there is one, is 0.0337, so that rate x decay x steps is kept: 2 x 4e-4 x 39 390 = 31.5 = 1
  (the mean of a cosine from 2) x 0.0337 x 936. Probe of 50 epochs, as published.
* Table 8: 100, 300 and 500 epochs become 6, 18 and 30; the original's loss, initialisation, biases,
  masks and probe.
* Optimizers: rates by custom, none tuned. The decay of AdamW and Lion takes the same share of a
  weight a step as L2 under heavy ball does in the long run, eta lambda / (1 - mu); Adam and RMSprop
  have L2 as momentum has it.
* Family: the methods beside DirectPred, with mini's fields and those of their rows in
  `configs/methods.py`. byol_gn's rates, which are among them, were chosen by the spread, on digits
  and at mini scale. Scale "digits", which it has besides, is configs/quickstart.py for 50 epochs,
  the dynamics recorded every 20 steps. It has no probe of the untrained encoder, which is the same
  in all cells of a seed but byol_gn.
* Noema: DirectPred without an average, with what might keep it from collapse. `rescues` says which
  of its cells were chosen with results in view.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import cifar10, cifar10_midi, cifar10_small, quickstart
from configs.methods import DECAYS, METHODS
from ssl_jax.reports.replication.published import PUBLISHED

BASES = {"mini": cifar10_small, "midi": cifar10_midi, "full": cifar10}
SCALES = tuple(BASES)
FILES = {scale: f"{module.__name__.replace('.', '/')}.py" for scale, module in BASES.items()}
# Of the tables in which nothing is published, one is of the digits, too.
DIGITS = {"digits": "configs/quickstart.py"}


class Cell(NamedTuple):
    """One run of a table. `overrides`: by scale, what it changes of the sweep's configuration."""

    name: str
    overrides: dict[str, dict]


def cell(name: str, scales: tuple[str, ...] = SCALES, **changes) -> Cell:
    """A cell whose `changes` (mini=, midi=, full=, all=) are given field by field."""
    return Cell(name, {scale: changes.get("all", {}) | changes.get(scale, {}) for scale in scales})


def method(name: str, label: str | None = None) -> dict:
    """The fields of a method of configs/methods.py; `label`: what the run is called, if not by the
    method.
    """
    return {"method": label or name} | METHODS[name]


# --- Published ------------------------------------------------------------------------------------

# "wdp": weight decay on the predictor alone; "nowd": on nothing.
PREDICTOR_DECAY = {
    "wdp": dict.fromkeys(SCALES, 4e-4) | {"mini": 0.0337},
    "nowd": dict.fromkeys(SCALES, 0.0),
}


def decay_cell(name: str) -> Cell:
    base, _, decay = name.rpartition("_")
    own = {
        scale: {"optimizer.predictor.weight_decay": value}
        for scale, value in PREDICTOR_DECAY[decay].items()
    }
    return cell(name, all=method(base, name) | {"optimizer.weight_decay": 0.0}, **own)


ORIGINAL = {
    "init": "pytorch",
    "loss_scale": 2.0,
    "projector.output_bias": True,
    "optimizer.exclude": "",
    "probe.protocol": "original",
}
SHARES = {"mini": 0.06, "midi": 0.3, "full": 1.0}  # of the published epochs


def original_cell(name: str) -> Cell:
    base, _, epochs = name.rpartition("_")
    lengths = {scale: {"epochs": round(share * int(epochs))} for scale, share in SHARES.items()}
    return cell(name, all=method(base), **lengths)


def plain_cell(name: str) -> Cell:
    return cell(name, all=method(name))


BUILD = {"table3": decay_cell, "original_table8": original_cell}

# --- Nothing published ----------------------------------------------------------------------------


def optimizer(scale: str, name: str) -> dict:
    """The optimizer with its rate and decay; momentum's are the base's own."""
    base = BASES[scale].get_config().optimizer
    rest = 1 - base.momentum
    # of a weight, taken off it a step in the long run
    share = base.learning_rate * base.weight_decay / rest
    changes = {
        "sgd": {"learning_rate": base.learning_rate / rest},
        "rmsprop": {"learning_rate": 1e-3},
        "adam": {"learning_rate": 1e-3},
        "adamw": {"learning_rate": 1e-3, "weight_decay": share / 1e-3, "decay": "decoupled"},
        "lion": {"learning_rate": 1e-4, "weight_decay": share / 1e-4, "decay": "decoupled"},
        # BYOL's decay, of kernels alone
        "lars": {"learning_rate": 1.0, "weight_decay": 1.5e-6, "exclude": r"(bias|scale)$"},
    }.get(name, {})
    fields = {f"optimizer.{field}": value for field, value in ({"name": name} | changes).items()}
    return {"method": f"byol_{name}"} | fields


OPTIMISERS = [
    cell(name, **{scale: optimizer(scale, name) for scale in SCALES})
    for name in ("momentum", "nesterov", "sgd", "rmsprop", "adam", "adamw", "lion", "lars")
]


def pull(scale: str, kind: str) -> dict:
    """What `configs.methods.apply_decay` changes."""
    base = BASES[scale].get_config().optimizer
    return {"optimizer.weight_decay": base.weight_decay / (1 - base.momentum)} | DECAYS[kind]


DECAY_SSL = [
    cell(
        f"{name}-{kind}",
        all=method(name, f"{name}-{kind}"),
        **{scale: pull(scale, kind) for scale in SCALES},
    )
    for name in ("byol", "simsiam")
    for kind in DECAYS
]

FAMILY = [
    cell(name, (*SCALES, *DIGITS), all=method(name))
    for name in (
        "directpred",
        "directpred_noema",
        "isoloss",
        "isoloss_noema",
        "directset",
        "directpred_centred",
        "optimal",
        "optimal_noema",
        "isoloss_euclidean",
        "isoloss_euclidean_noema",
        "directpred_variance",
        "simsiam_sym",
        "simsiam_sym_variance",
        "byol",
        "byol_gn",
    )
]


def rescues(scale: str) -> dict[str, dict]:
    """Changes of DirectPred without a target average which might keep it from collapse.

    "memory_N": F is a mean over about so many batches, 1 / (1 - rho). The first are of one field
    each. The pairs were chosen after the first seed of these at mini scale: no decay and a tenth of
    the rate left the accuracy nearest to the untrained encoder's, and the longest memory had the
    highest rank, which turned out to be that of old batches.
    """
    base = BASES[scale].get_config()
    rate, decay = base.optimizer.learning_rate, base.optimizer.weight_decay
    eps = base.predictor.eps
    single = {
        "eps_none": {"predictor.eps": 0.0},
        "eps_tenth": {"predictor.eps": eps / 10},
        "eps_fivefold": {"predictor.eps": 5 * eps},
        "eps_literal": {"predictor.eps_mode": "literal"},
        "memory_1": {"predictor.rho": 0.0},
        "memory_10": {"predictor.rho": 0.9},
        "memory_100": {"predictor.rho": 0.99},
        "memory_1000": {"predictor.rho": 0.999},
        "centred": {"predictor.centre": True},
        "every_5": {"predictor.every": 5},
        "rate_tenth": {"optimizer.learning_rate": rate / 10},
        "rate_threefold": {"optimizer.learning_rate": 3 * rate},
        "decay_none": {"optimizer.weight_decay": 0.0},
        "decay_tenth": {"optimizer.weight_decay": decay / 10},
        "decay_fivefold": {"optimizer.weight_decay": 5 * decay},
    }
    pairs = (
        ("rate_tenth", "decay_none"),
        ("memory_1000", "rate_tenth"),
        ("memory_1000", "decay_none"),
    )
    return single | {f"{one}-{two}": single[one] | single[two] for one, two in pairs}


RESCUES = {scale: rescues(scale) for scale in SCALES}
NOEMA = [plain_cell("directpred_noema")] + [
    cell(
        f"directpred_noema-{name}",
        all=method("directpred_noema", f"directpred_noema-{name}"),
        **{scale: RESCUES[scale][name] for scale in SCALES},
    )
    for name in RESCUES["mini"]
]

TABLES: dict[str, list[Cell]] = {
    name: [BUILD.get(name, plain_cell)(published.cell) for published in cells]
    for name, cells in PUBLISHED.items()
} | {"optimisers": OPTIMISERS, "decay_ssl": DECAY_SSL, "family": FAMILY, "noema": NOEMA}
# What a whole table changes of the scale's base, for all its cells.
RATES = {
    "optimizer.learning_rate": 0.2,
    "optimizer.predictor.learning_rate": 2.0,
    "probe.epochs": 50,
}
CHANGES: dict[str, dict[str, dict]] = {
    "table1": dict.fromkeys(SCALES, {"probe.epochs": 100}),
    "table2": dict.fromkeys(SCALES, {"probe.epochs": 100}),
    "table3": dict.fromkeys(SCALES, RATES) | {"full": RATES | {"epochs": 101}},
    "original_table8": dict.fromkeys(SCALES, ORIGINAL),
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
    config.scale = "mini"  # mini | midi | full, of the family digits, too
    config.seeds = (0, 1, 2)
    config.cells = ",".join(cell.name for cell in TABLES[name])  # which of them, and in which order
    # cells that differ in numbers alone train by one program, as configs/sweep.py has it
    config.together = "auto"
    # after so many, the cell at work is saved and left, to be gone on with; 0: no end
    config.minutes = 0.0
    # for cells at which other processes are, to take them over should those end; False: leave them
    config.wait = True
    config.store = "results"  # folder of the finished cells' results; "": none is kept
    config.again = False  # run, and store anew, what is in the store but not in the work directory
    config.data_dir = ""  # data.data_dir of every cell; "": as the scale has it
    config.files = ConfigDict(FILES)  # what the scales start from
    config.update({scale: module.get_config() for scale, module in BASES.items()})
    config.mini.dynamics.every = 26
    config.midi.dynamics.every = config.full.dynamics.every = 390  # once an epoch
    scales = tuple(TABLES[name][0].overrides)
    if "digits" in scales:
        config.files.update(DIGITS)
        config.digits = quickstart.get_config()
        config.digits.epochs, config.digits.eval_every = 50, 25
        config.digits.dynamics.every = 20
        config.digits.probe.random_init = False
    for scale in scales:
        config[scale].update_from_flattened_dict(CHANGES.get(name, {}).get(scale, {}))
    config.overrides = ConfigDict(
        {
            scale: {cell.name: nested(cell.overrides[scale]) for cell in TABLES[name]}
            for scale in scales
        }
    )
    return config
