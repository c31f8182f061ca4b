"""Images per second by steps per call, batch size, devices, and the number and size of the training
images.

    python benchmarks/scale.py [--quick] [--config NAME.py:METHOD] [--out FILE]

Each table changes one thing, takes its contenders in alternation, and gives every row's ratio to
its first row, which is the same training in all tables. Virtual CPU devices share one thread pool,
so that more of them add no arithmetic; what they can show is the cost of pmap, of the shared
statistics and of averaging the gradients.
"""

from typing import Any

import jax
from common import alternate, finish, machine, parse
from setup_step import Training, base_config, changed, compiled

from ssl_jax.train.parallel import pick_devices, steps_per_call

CPU_DEVICES = 4

# What to go through, beside the baseline. "images": how many a repeat takes, rounded up to whole
# calls.
PLAN = {
    "repeats": 7,
    "images": 2560,
    "calls": (1, 2, 5, 10, 20),
    "batches": (64, 256, 512, 1024),
    "devices": (2, 4),
    "norms": {"synchronised": True, "local": False},
    "sizes": (5000, 20_000, 50_000),
    "sides": (64, 96),
}
QUICK = {
    "repeats": 5,
    "images": 256,
    "calls": (2,),
    "batches": (128,),
    "devices": (4,),
    "norms": {"synchronised": True},
    "sizes": (50_000,),
    "sides": (96,),
}


def main() -> None:
    args = parse(__doc__.splitlines()[0], config="")
    # before JAX looks for devices; an accelerator ignores it
    jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
    config, plan = base_config(args), QUICK if args.quick else PLAN
    base, rows = sized(config, plan, {}), []
    auto = steps_per_call(config.steps_per_call, pick_devices(1))
    for name, setting, contenders in [
        ("steps per call", f"{auto}, auto", by_steps_per_call(config, plan)),
        ("batch size", f"{config.batch_size}", by_batch_size(config, plan)),
        ("devices", "1", by_devices(config, plan)),
        ("training images", "1000", by_set_size(config, plan)),
        ("image side", "32", by_image_size(config, plan)),
    ]:
        rows += measure(name, {setting: base} | contenders, plan["repeats"])
    finish(args, "scale", rows, config=config.to_dict())


def by_steps_per_call(config: Any, plan: dict) -> dict[str, Training]:
    return {
        f"{count}": sized(config, plan, {"steps_per_call": f"{count}"}) for count in plan["calls"]
    }


def by_batch_size(config: Any, plan: dict) -> dict[str, Training]:
    return {
        f"{size}": sized(config, plan, {"batch_size": size}, size=2048) for size in plan["batches"]
    }


def by_devices(config: Any, plan: dict) -> dict[str, Training]:
    """The same batch shared by more devices, and as large a batch on each of them; and one device
    without pmap.
    """
    batch, local = config.batch_size, jax.local_devices()
    table = {"1, plain jit": sized(config, plan, {"steps_per_call": "1"}, pmap=False)}
    if jax.default_backend() != "cpu":  # the baseline takes ten steps a call there, plain jit one
        table["1, one step a call"] = sized(config, plan, {"steps_per_call": "1"})
    for count in (count for count in plan["devices"] if count <= len(local)):
        for total, words in ((batch, "the batch shared"), (batch * count, "a batch each")):
            for norm, sync in plan["norms"].items():
                fields = {"batch_size": total, "sync_batch_norm": sync}
                table[f"{count}, {words}, {norm} norm"] = sized(
                    config, plan, fields, devices=local[:count]
                )
    return table


def by_set_size(config: Any, plan: dict) -> dict[str, Training]:
    return {
        f"{size}": sized(config, plan, {"data.resident": "yes"}, size=size)
        for size in plan["sizes"]
    }


def by_image_size(config: Any, plan: dict) -> dict[str, Training]:
    return {f"{side}": sized(config, plan, {}, side=side) for side in plan["sides"]}


def sized(config: Any, plan: dict, fields: dict, **options: Any) -> Training:
    """`config` with `fields`, for about as many images as the plan says, in whole calls."""
    config = changed(config, fields)
    call = steps_per_call(config.steps_per_call, pick_devices(1))
    calls = -(-plan["images"] // (config.batch_size * call))
    return compiled(config, calls * call, **options)


def measure(name: str, table: dict[str, Training], repeats: int) -> list[dict]:
    """One row for each contender; the first is the baseline."""
    times = alternate({key: training.run for key, training in table.items()}, repeats)
    rows = [row(name, key, training, times[key]) for key, training in table.items()]
    return [row | {"ratio": row["images_per_s"] / rows[0]["images_per_s"]} for row in rows]


def row(name: str, setting: str, training: Training, time: dict) -> dict:
    """Rates from the median time; slowest and fastest from the longest and shortest."""
    rate = training.images / time["median_s"]
    return {
        "table": name,
        "setting": setting,
        "images_per_s": rate,
        "slowest": training.images / time["max_s"],
        "fastest": training.images / time["min_s"],
        "per_core": rate / machine()["cores"] if jax.default_backend() == "cpu" else None,
        "per_device": rate / training.devices,
        "step_ms": 1e3 * time["median_s"] / training.steps,
        "seconds": time["seconds"],
    }


if __name__ == "__main__":
    main()
