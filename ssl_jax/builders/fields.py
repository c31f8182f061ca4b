"""Read a configuration file, and set its fields from text as the command line has it."""

import inspect
import re
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssl_jax.builders.configurations import find_config, known_configs, packaged_configs
from ssl_jax.errors import UserError, nearest
from ssl_jax.files import local_path
from ssl_jax.types import Config
from ssl_jax.workdir.directory import flatten

TAKES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "numbers with commas between them",
}
# Fields, and sections of fields, that name local files or directories: `mini.data.data_dir`,
# `weights.convnext_tiny`.
PATHS = ("data_dir", "checkpoint", "run", "weights", "store")
SEVERAL_PATHS = ("runs",)  # with commas between them


def read_config(value: str) -> ConfigDict:
    """Return the configuration NAME[:ARG] with its defaults; `find_config` says what NAME is."""
    name, colon, argument = value.partition(":")
    name = str(find_config(name))
    try:
        with packaged_configs():
            get_config = runpy.run_path(name).get("get_config")
            if get_config is None:
                raise UserError(
                    f"--config: {name} has no get_config, {nearest(name, known_configs())}"
                )
            if colon and not inspect.signature(get_config).parameters:
                raise UserError(f"--config: {name} takes no argument, got {argument!r}")
            config = get_config(*[argument] * bool(colon))
    except UserError:
        raise
    # a configuration is the user's own program: any mistake may be in it
    except Exception as error:
        raise UserError(
            f"--config: {name}, {where(error, name)}{type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config of {name} gave {type(config).__name__}, must return a ConfigDict"
        )
    if not isinstance(config.get("task"), str):
        raise UserError(f"--config: {name} has no field task, the name of what is to be run")
    return config


def where(error: Exception, name: str) -> str:
    """Return "line 3: ", the line of the file `name` that raised the error; "" where unknown."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == name
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    return f"line {line}: " if line else ""


def configured(name: str, fields: Mapping[str, str]) -> ConfigDict:
    """Return a configuration with some fields set, as `--config NAME --config.FIELD=TEXT` does.

    Args:
        name: NAME[:ARG], as `find_config` takes NAME.
        fields: texts by the fields' full names.

    Returns:
        The configuration.

    Raises:
        UserError: no such configuration or field, or a text that is no value of its type.
    """
    config = read_config(name)
    words = ["configured", *(f"--config.{field}={text}" for field, text in fields.items())]
    set_fields(words, config)
    return with_local_paths(config)


def set_fields(
    argv: list[str], config: ConfigDict, values: flags.FlagValues | None = None
) -> list[str]:
    """Set the fields that the words --config.FIELD=VALUE name, and the flags in `values`.

    Args:
        argv: the words; the first is the program's name.
        config: takes the values.
        values: the other flags, which are parsed as well; takes the flag `config`.

    Returns:
        The words that are no flags, after the program's name.

    Raises:
        UserError: names the first word that is wrong.
    """
    check_names(argv, config)
    texts = lists_of_texts(config)
    values = flags.FlagValues() if values is None else values
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = [name for name in values if not name.startswith("config.")]
        raise UserError(
            f"--{error.flagname}: no such flag, {nearest(error.flagname, known)}"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(explain(str(error), flat(config))) from error
    for field, given in lists_of_texts(config).items():
        if field not in texts:  # the type, a tuple, is that of numbers as well
            words = ",".join(map(str, given))
            raise UserError(f"{field}: got {words!r}, takes {TAKES[tuple]}")
    return rest


def lists_of_texts(config: ConfigDict, section: str = "") -> dict[str, tuple]:
    """Return the fields of several values that hold a text, by their full names.

    Args:
        config: a configuration, or a section of it.
        section: the section's full name with a dot behind it.

    Returns:
        {field: its values}.
    """
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= lists_of_texts(value, f"{section}{name}.")
        elif isinstance(value, tuple) and any(isinstance(one, str) for one in value):
            found[f"{section}{name}"] = value
    return found


def check_names(argv: list[str], config: ConfigDict) -> None:
    """Raise a UserError for a word that would set a section or an unknown field."""
    fields = flat(config)
    for name in (m[1] for word in argv if (m := re.match(r"--?(?:no)?config\.([^=]*)", word))):
        inner = [field for field in fields if field.startswith(f"{name}.")]
        if inner:
            raise UserError(
                f"{name}: is a section, takes no value itself; its fields are {', '.join(inner)}"
            )
        if name not in fields:
            raise UserError(
                f"{name or '--config.'}: no such field, {nearest(name, fields, few=True)}"
            )


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field by its full name, as {"encoder.width": int, ...}."""
    fields = {}
    for name, value in config.items():
        inner = isinstance(value, ConfigDict)
        fields |= (
            flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": config.get_type(name)}
        )
    return fields


def explain(message: str, fields: dict[str, type]) -> str:
    """Return one line for the error of absl or ml_collections about a value."""
    if match := re.search(r"--config\.([\w.]+)=(.*?): ", message, re.DOTALL):
        return f"{match[1]}: got {match[2]!r}, takes {TAKES.get(fields[match[1]], 'text')}"
    if match := re.search(r"(--\S+?)=(.*?): ", message, re.DOTALL):
        return f"{match[1]}: got {match[2]!r}, takes a whole number"
    if match := re.fullmatch(r"Missing value for flag (\S+)", message):
        return f"{match[1]}: no value after it, takes {match[1]}=VALUE"
    return message


def with_local_paths(config: Config) -> Config:
    """Return the configuration with `~` expanded in all fields that are paths.

    Raises:
        UserError: one of them can be no local path, such as a URL.
    """
    changes = {}
    for field, value in flatten(config.to_dict()).items():
        names = field.split(".")
        if isinstance(value, str) and value and not set(names).isdisjoint(PATHS):
            changes[field] = local_path(field, value)
        elif isinstance(value, str) and names[-1] in SEVERAL_PATHS:
            words = [word.strip() for word in value.split(",")]
            changes[field] = ",".join(local_path(field, word) for word in words)
    if all(value == flatten(config.to_dict())[field] for field, value in changes.items()):
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config
