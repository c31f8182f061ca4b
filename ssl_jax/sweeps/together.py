"""Which cells of a sweep train together, and how many."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import jax

from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining, supervised
from ssl_jax.builders.plan import Plan
from ssl_jax.builders.program import fresh_key, steps_per_call
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import say
from ssl_jax.sweeps.jobs import Job
from ssl_jax.train import parallel
from ssl_jax.train.together import Traced, trace_step
from ssl_jax.types import Config

# The share of a device's memory that a group may take by the estimate of `peak_bytes`, which knows
# neither the scratch memory of libraries nor what evaluations need beside the step.
SHARE = 0.5
MOST = 64  # cells of a group under "auto": evaluations and probes go one after the other
REACH = 256  # cells that are looked at for one group


class Form(NamedTuple):
    """What cells that train together have in common, and what one of them needs."""

    words: tuple
    bytes: int  # of a device's memory, for one cell
    shared: int  # bytes that all share: the images on the device


def form_of(config: Config) -> Form:
    """Return the form of a cell; reads no image and computes nothing."""
    return {"pretrain": _of_pretraining, "supervised": _of_supervised}[config.task](config)


def _of_pretraining(config: Config) -> Form:
    config, plan, parts, _ = pretraining.prepare(config)
    recipe = parts.recipe  # the same images give the same mean and std
    recipe = recipe._replace(mean=recipe.mean or (0.0,), std=recipe.std or (1.0,))
    views = make_views(recipe, plan.data.side)
    step = pretraining.build_step(config, parts, views, plan.axis)
    state = pretraining.make_init(parts, plan.data).trace(fresh_key(config)).out_info
    return _form(config, plan, step, state, False, plan.data.pretrain)


def _of_supervised(config: Config) -> Form:
    plan, parts, augment = supervised.prepare(config)
    step = supervised.build_step(config, parts, augment, plan.data.num_classes, plan.axis)
    state = supervised.make_init(parts, plan.data).trace(fresh_key(config)).out_info
    return _form(config, plan, step, state, True, plan.data.train)


def _form(config: Config, plan: Plan, step, state, labelled: bool, images: int) -> Form:
    size = parallel.per_device(config.batch_size, plan.devices)
    traced: Traced = trace_step(
        step, state, plan.data.image, size, labelled=labelled, devices=len(plan.devices)
    )
    words = (
        config.task,
        config.data.to_json(),
        plan.cadence,
        len(plan.devices),
        steps_per_call(config, plan.devices),
        traced.form,
    )
    return Form(words, traced.bytes, images * math.prod(plan.data.image))


def wanted(value: str | int | bool) -> int | None:
    """Return how many cells train together: a number, or None for "auto"; UserError for others."""
    if str(value) == "auto":
        return None
    if str(value) == "False":
        return 1
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(
            f"together: got {value!r}, takes 'auto', a whole number of at least 1, or False for "
            "each cell by itself"
        )
    return int(value)


def limit(count: int | None, form: Form) -> int:
    """Return the most cells of a group.

    "auto" is 1 on a CPU: one cell after the other takes less time there (benchmarks/README.md).
    Elsewhere it is as many as fit a device's memory, as far as that can be known.

    Args:
        count: from `wanted`.
        form: of the cells.

    Returns:
        A number of at least 1.
    """
    if count is not None:
        return count
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu" or memory is None:
        return 1
    return fitting(memory, form)


def fitting(memory: int, form: Form) -> int:
    """Return how many cells of a form fit `memory` bytes; at least 1, at most `MOST`."""
    return max(1, min(MOST, int((SHARE * memory - form.shared) // form.bytes)))


def company(job: Job, left: Iterable[Job], count: int | None, forms: dict[str, Form]) -> list[Job]:
    """Return the jobs to train with a job, itself first.

    Args:
        job: the first of them.
        left: those that are not done, in their order.
        count: from `wanted`.
        forms: of cells by their names, known so far; takes new ones.

    Returns:
        At most so many jobs as `limit` says.
    """
    if count == 1 or (count is None and jax.default_backend() == "cpu"):
        return [job]

    def known(one: Job) -> Form:
        if one.cell not in forms:
            try:
                forms[one.cell] = form_of(one.config)
            except Exception as error:  # its own run tells more of it
                say(f"{one.cell}: trains by itself, as its step cannot be traced ({error})")
                forms[one.cell] = Form((one.cell,), 1, 0)
        return forms[one.cell]

    found, most = [job], limit(count, known(job))
    for other in islice(left, REACH):
        if len(found) >= most:
            break
        if other is not job and known(other).words == known(job).words:
            found.append(other)
    return found
