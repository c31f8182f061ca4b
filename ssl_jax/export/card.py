"""card.md: what an encoder is, where it comes from and how it is read, for people and for a hub.

The YAML between the first two lines of dashes is what model hubs read.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ssl_jax.export import pytorch, stablehlo
from ssl_jax.files import size
from ssl_jax.probes.label_free import COLUMNS
from ssl_jax.text import in_markdown, printable
from ssl_jax.workdir.schema import KNOWN, SECTION, TEXT, WHOLE, is_number

NAME = "card.md"
PROBED = "on frozen features of the test images"
# Name in result.json -> what was measured; {} are fields of the run's section `probe`.
PROTOCOLS = {
    "linear_accuracy": f"linear probe {PROBED}: raw features, Adam, epoch {{epochs_seed}}",
    "original_last_accuracy": f"linear probe {PROBED}: standardised features, Adam 3e-4, "
    "epoch {epochs_original}",
    "original_best_test_epoch_accuracy": "the same, its best epoch by test accuracy: optimistic",
    "ridge_accuracy": f"ridge regression {PROBED}, penalty by leave-one-out",
    "newton_accuracy": f"logistic regression {PROBED}, penalty {{newton_l2:g}}",
    "knn_accuracy": f"cosine kNN {PROBED}, k = {{knn_k}}, temperature {{knn_temperature:g}}",
    "test_accuracy": "the classifier, on the test images, after the last epoch",
    "best_validation_epoch_test_accuracy": "the classifier, on the test images, after the epoch "
    "that was best on held-out training images",
}
# Column of metrics.csv -> what was measured during training.
DURING = {
    "knn_validation": "cosine kNN on training images whose labels were held back",
    "validation_accuracy": "the classifier, on held-out training images",
    "test_accuracy": "the classifier, on the test images",
} | dict.fromkeys(COLUMNS, "without labels, on training images")
STEMS = {"cifar": "3x3, stride 1", "imagenet": "7x7, stride 2, max-pool"}
EPOCHS = {"epochs_seed": 100, "epochs_original": 50}  # of linear probes, where none are set
UNTRAINED = "random_init_"
CONTENDERS = ("pretrained", "random_init", "raw_pixels")  # of the few-label probe
# What the card reads of the run's result.json, which may be somebody else's.
RESULT = {
    "steps?": WHOLE,
    "device?": TEXT,
    "versions?": {str: TEXT},
    "provenance?": SECTION,
    "label_free_images?": WHOLE,
    "label_free_split?": TEXT,
    "few_label?": {"labels_per_class": WHOLE, "draws": WHOLE}
    | {f"{name}?": {"mean": KNOWN} for name in CONTENDERS},
}


def card(
    settings: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    row: Mapping[str, float],
    written: Mapping[str, Any],
) -> str:
    """Return the text of card.md.

    Args:
        settings: config.json of the run.
        result: result.json of the run, None where it has not ended.
        row: the row of metrics.csv at the exported step, {} where there is none.
        written: result.json of the export, as far as it is known: without the card itself.

    Returns:
        Markdown behind a header of YAML.
    """
    method, data = in_markdown(settings["method"]), in_markdown(settings["data"]["name"])
    labelled = settings["task"] == "supervised"
    height, width, channels = written["image"]
    how = (
        "It was trained on labels. Its features lie before the classifier, which is left out."
        if labelled
        else "It was pretrained without labels and without negative pairs."
    )
    parts = [
        _header(settings, written),
        f"# {method}: {in_markdown(settings['encoder']['name'])} on {data}\n",
        f"An encoder of images. It turns {height}x{width} pixels of {channels} "
        f"channel{'s' * (channels > 1)} into {written['features']} numbers. {how}\n",
        "## Training\n",
        _table(["", ""], _training(settings, result, written)),
        "## Measured\n",
        _measured(settings, result, row, written),
        "## Reading it\n",
        _reading(written),
        "## Where it comes from\n",
        _origin(result, written),
    ]
    return "\n".join(parts)


def _header(settings: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    library = "timm" if written["built_by"] == "timm" else "jax"
    kind = "supervised" if settings["task"] == "supervised" else "self-supervised-learning"
    tags = [
        "image-feature-extraction",
        kind,
        settings["method"],
        settings["encoder"]["name"],
        "jax",
    ]
    fields: dict[str, Any] = {"library_name": library, "pipeline_tag": "image-feature-extraction"}
    if written["license"]:
        fields["license"] = written["license"]
    # JSON texts are YAML texts, whatever is in them
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    lines += ["tags:", *(f"- {json.dumps(str(tag))}" for tag in dict.fromkeys(tags))]
    return "\n".join(["---", *lines, "---", ""])


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _training(
    settings: Mapping[str, Any], result: Mapping[str, Any] | None, written: Mapping[str, Any]
) -> list[list[str]]:
    """Return the rows of the table of what was trained, on what, for how long."""
    data = settings["data"]
    encoder = {name: value for name, value in settings["encoder"].items() if value != "auto"}
    if not encoder["name"].startswith("resnet"):
        encoder.pop("stem", None)
    elif "stem" in encoder:
        encoder["stem"] = f"{encoder['stem']} ({STEMS[encoder['stem']]})"
    encoder = {name: value for name, value in encoder.items() if name != "name" and value}
    ends = result.get("steps") if result else None
    of = f" of {ends}" if ends is not None else "; the run has not ended"
    train_size = f"{data['train_size']} images of it" if data["train_size"] else "all of it"
    share = data.get("labelled_share", 1.0)
    labelled = f", and of these a share of {share:g}, drawn by class" if share < 1 else ""
    normalisation = written["normalisation"]
    height, width = written["crop"]
    cropped = written["crop"] != written["image"][:2]
    seen = f", of which the central {height}x{width} are seen" if cropped else ""
    optimizer = settings["optimizer"]
    trainer = f"{optimizer['name']}, rate {optimizer['learning_rate']:g}"
    return [
        ["method", in_markdown(settings["method"])],
        ["data", f"{in_markdown(data['name'])}, the training images, {train_size}{labelled}"],
        ["step", f"{written['steps']}{of}"],
        ["epochs, batch", f"{settings['epochs']}, {settings['batch_size']}"],
        ["optimizer", in_markdown(f"{trainer}, weight decay {optimizer['weight_decay']:g}")],
        ["seed", settings["seed"]],
        ["encoder", in_markdown(", ".join(f"{k} {v}" for k, v in encoder.items()))],
        ["parameters", f"{written['parameters']:,}"],
        ["features", written["features"]],
        ["images", f"{'x'.join(map(str, written['image']))} (height, width, channels){seen}"],
        ["mean of pixels in \\[0, 1\\]", _numbers(normalisation["mean"])],
        ["their deviation", _numbers(normalisation["std"])],
        ["precision", settings["precision"]],
        ["device", in_markdown((result or {}).get("device") or "unknown")],
    ]


def _measured(
    settings: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    row: Mapping[str, float],
    written: Mapping[str, Any],
) -> str:
    """Return the table of accuracies and label-free measures, each with its protocol."""
    if result is None or result.get("steps") != written["steps"]:
        found = [
            [name, f"{row[name]:.4g}", protocol]
            for name, protocol in DURING.items()
            if math.isfinite(row.get(name, math.nan))
        ]
        return _table(["at this step", "", "protocol"], found) if found else "Nothing here.\n"
    probe = dict(settings.get("probe", {}))
    probe |= {name: probe.get("epochs") or epochs for name, epochs in EPOCHS.items()}
    images = (
        f"{result.get('label_free_images')} {in_markdown(result.get('label_free_split'))} images"
    )
    protocols = {n: p.format(**probe) for n, p in PROTOCOLS.items() if n in result}
    protocols |= {name: f"without labels, on {images}" for name in COLUMNS if name in result}
    rows = []
    for name, protocol in protocols.items():
        beside = result.get(f"{UNTRAINED}{name}")
        rows.append([name, _number(result[name]), _number(beside), protocol])
    few = result.get("few_label") or {}
    for name in CONTENDERS:
        if few.get(name):
            labels, draws = few["labels_per_class"], few["draws"]
            protocol = f"few-label probe: {labels} labels a class, mean of {draws} draws"
            rows.append([f"few labels, {name}", _number(few[name]["mean"]), "", protocol])
    if not rows:
        return "The run measured nothing.\n"
    about = "At the end of the run, which is this step. Accuracies are fractions.\n\n"
    return about + _table(["measure", "this encoder", "untrained", "protocol"], rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if is_number(value) else ""


def _reading(written: Mapping[str, Any]) -> str:
    height, width = written["crop"]
    shape = f"(b, {written['image'][2]}, {height}, {width}) float32"
    by = written["built_by"]
    given = ", ".join(["b", *map(str, written["image"])])
    jax = _block(
        "import jax.export  # needs flatbuffers",
        "",
        f'program = jax.export.deserialize(bytearray(open("{stablehlo.NAME}", "rb").read()))',
        f"features = program.call(images)  # ({given}) uint8 -> (b, {written['features']}) float32",
    )
    if by == "timm":
        torch = f"timm, with images {shape}, normalised as above:\n\n" + _block(
            "import timm",
            "",
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        )
    elif by == "torchvision":
        torch = (
            f"PyTorch, with images {shape}, normalised as above. timm has no ResNet with these "
            f"first layers; `{pytorch.SCRIPT}` builds torchvision's:\n\n"
            + _block("from load_torch import load", "", "model = load()")
        )
    else:
        torch = (
            f"PyTorch has no such module. `{pytorch.WEIGHTS}` has the arrays under the names of "
            "ssl_jax, in the layout of Flax.\n"
        )
    return f"jax alone, on a CPU, a GPU or a TPU, normalisation inside:\n\n{jax}\n{torch}"


def _block(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```", ""])


def _origin(result: Mapping[str, Any] | None, written: Mapping[str, Any]) -> str:
    """Return commands, versions, what made the run, and the table of files."""
    provenance = (result or {}).get("provenance") or {}
    versions = (result or {}).get("versions") or {}
    rows = [
        ["exported by", f"`{_plain(written['command'])}`"],
        ["exported with", _versions(written["versions"])],
    ]
    if versions:
        rows.append(["trained with", _versions(versions)])
    if provenance.get("command"):
        rows.append(["trained by", f"`{_plain(provenance['command'])}`"])
    if provenance.get("commit"):
        changed = ", changed" if provenance.get("changed") else ""
        rows.append(["commit of ssl_jax", in_markdown(f"{provenance['commit']}{changed}")])
    for parent in provenance.get("parents") or ():
        step = f", step {parent['step']}" if parent.get("step") is not None else ""
        rows.append(["began from", in_markdown(f"{parent.get('path')}{step}")])
    files = [
        [f"`{name}`", size(entry["bytes"]), f"`{entry['sha256'][:16]}`"]
        for name, entry in written["files"].items()
    ]
    return _table(["", ""], rows) + "\n" + _table(["file", "size", "sha256 begins"], files)


def _plain(text: str) -> str:
    """Return a text for a cell, between backticks."""
    return printable(text).replace("`", "'").replace("|", "\\|")


def _versions(versions: Mapping[str, str]) -> str:
    return in_markdown(", ".join(f"{name} {version}" for name, version in versions.items()))
