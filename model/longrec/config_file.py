"""Configuration files: read YAML, apply overrides, validate, describe.

Pydantic validates at this border; the dataclasses of `longrec.config` stay plain. An error names
the key's path, the value found, the value expected and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from longrec.config import MODEL_PRESETS, ModelConfig, RunConfig
from longrec.errors import ConfigError
from longrec.spelling import nearest_name

S = TypeVar("S")

PLATFORM = "platform"
"""Section of a file for `pipelines.platform_config`; this library does not read it."""
RENAMED_KEYS: Mapping[str, str] = {
    "lengths.law": "lengths.distribution",
    "platform.home": "platform.workdir",
    "platform.home_volume": "platform.workdir_volume",
}
"""Old key -> new key. An old key still works, with a warning, until the next version."""
MAX_EXACT_DOUBLE = 2**53
EXPECTED_TYPES = {"tuple_type": "a list", "dict_type": "a mapping", "dataclass_type": "a mapping"}
"""Pydantic error type -> expected type in the words of YAML."""
YAML_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
"""A float with an exponent, as in YAML 1.2: PyYAML reads `1e-3` as text."""
JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
YAML_TIMESTAMP = "tag:yaml.org,2002:timestamp"


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a configuration file.

    Args:
        run: the configuration of the run.
        platform: the section `platform`, unread; `pipelines.platform_config` validates it.
    """

    run: RunConfig
    platform: Mapping[str, Any]


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run configuration of a YAML file.

    Args:
        path: path of the file; None for the defaults.
        overrides: `section.key=value` texts that replace values of the file; values are YAML.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong.
    """
    return read_config(path, overrides).run


def read_config(path: str | Path | None, overrides: Sequence[str] = ()) -> ConfigFile:
    """Return the run configuration and the platform section of a YAML file.

    Args, Raises: see `load_config`.
    """
    value = {} if path is None else _read_mapping(path)
    for text in overrides:
        key, entry = parse_override(text)
        set_key(value, key, entry)
    return ConfigFile(build(RunConfig, value), value.get(PLATFORM) or {})


def to_yaml(config: RunConfig) -> str:
    """Return the text of a configuration file with every key of a run."""
    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False, default_flow_style=None)
    return text


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a configuration that differ from their defaults, by section."""
    changed: dict[str, Any] = _difference(config.to_dict(), RunConfig().to_dict())
    return changed


def build(cls: type[S], value: Mapping[str, Any], *, where: str = "") -> S:
    """Return a configuration dataclass from its JSON form.

    Whole floats become ints: Kubeflow Pipelines carries every number as a double.

    Args:
        cls: a dataclass of `longrec.config`, or one like them.
        value: keys and values. A `RunConfig` ignores the section `platform`.
        where: path of the section in the file, for example `train`; error messages name it.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of bounds.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or cls.__name__} must be a mapping", found=repr(value))
    section = use_current_keys(value, where=where)
    if cls is RunConfig:
        section.pop(PLATFORM, None)
        if isinstance(section.get("model"), dict):
            section["model"] = _with_preset(section["model"])
    elif cls is ModelConfig:
        section = _with_preset(section)
    text = json.dumps(section, default=functools.partial(_refuse_type, where or cls.__name__))
    adapter: pydantic.TypeAdapter[S] = _adapter(typing.cast("Any", cls))
    try:
        return adapter.validate_json(text, strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        raise _config_error(error, cls, where) from error


def _with_preset(model: dict[str, Any]) -> dict[str, Any]:
    """Return the section `model` with the settings of its preset; given keys win."""
    preset = MODEL_PRESETS.get(str(model.get("preset", "default")), {})
    return {**preset, **model}


def use_current_keys(value: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Return a copy of a section with the new names of renamed keys and whole floats as ints.

    Args:
        value: keys and values of the section.
        where: path of the section; empty for a whole file.

    Raises:
        ConfigError: the section holds both the old and the new key.
    """
    copied: dict[str, Any] = _copy_with_ints(value)
    prefix = f"{where}." if where else ""
    for old, new in RENAMED_KEYS.items():
        if not old.startswith(prefix):
            continue
        *parents, name = old.removeprefix(prefix).split(".")
        section = _subsection(copied, parents)
        if name not in section:
            continue
        new_name = new.rpartition(".")[2]
        if new_name in section:
            raise ConfigError(
                f"configuration key '{old}' was renamed to '{new}'",
                found="both keys",
                fix=f"Remove '{old}'.",
            )
        section[new_name] = section.pop(name)
        _warn_renamed(old, new)
    return copied


def current_key(key: str) -> str:
    """Return the current name of a dotted key such as `lengths.mean`; warn about an old name."""
    new = RENAMED_KEYS.get(key)
    if new is None:
        return key
    _warn_renamed(key, new)
    return new


def parse_override(text: str) -> tuple[str, Any]:
    """Return the key and the value of `key=value`; the value is YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(
            "an override must look like key=value", found=text, fix="For example train.epochs=2."
        )
    name = key.strip()
    return current_key(name), parse_yaml(value, f"the value of {name}")


def read_text(path: str | Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration at {path}",
            fix="Give one with --config; the folder configs/ has examples.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read",
            found=getattr(error, "strerror", None) or error,
            expected="a YAML file in UTF-8",
            fix="See configs/ for examples.",
        ) from error


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text; `source` names it in an error.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        return yaml.load(text, _yaml_loader())  # noqa: S506  (derives from SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML", found=" ".join(str(error).split())) from error


def json_schema(**sections: type) -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors.

    Args:
        sections: dataclasses of further sections by name, for example `platform=PlatformConfig`.
    """
    fields = [(name, cls, dataclasses.field(default_factory=cls)) for name, cls in sections.items()]
    whole = dataclasses.make_dataclass("Configuration", fields, bases=(RunConfig,), frozen=True)
    schema = pydantic.TypeAdapter(whole).json_schema()
    classes = {cls.__name__: cls for cls in _nested_dataclasses(whole)}
    for name, definition in schema["$defs"].items():
        _describe(definition, classes[name])
    _describe(schema, RunConfig)
    return {"$schema": JSON_SCHEMA_DIALECT, **schema}


def _read_mapping(path: str | Path) -> dict[str, Any]:
    value = parse_yaml(read_text(path), str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} is no configuration",
            found=type(value).__name__,
            expected="a mapping of keys",
            fix="See configs/.",
        )
    return use_current_keys(value)


def set_key(value: dict[str, Any], key: str, entry: Any) -> None:
    """Set a dotted key such as `train.epochs` in a mapping of sections.

    Raises:
        ConfigError: a part of the key before the last names a single value.
    """
    *parents, last = key.split(".")
    section = value
    for parent in parents:
        if section.get(parent) is None:  # It is missing, or an empty section.
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise ConfigError(
                f"'{key}' does not name a configuration key", fix=f"'{parent}' is a single value."
            )
    section[last] = entry


def _subsection(value: dict[str, Any], parents: Sequence[str]) -> dict[str, Any]:
    """Return the mapping below `parents`; an empty one if there is none."""
    section: Any = value
    for parent in parents:
        section = section.get(parent)
        if not isinstance(section, dict):
            return {}
    return typing.cast("dict[str, Any]", section)


def _copy_with_ints(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copy_with_ints(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy_with_ints(entry) for entry in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT_DOUBLE:
        return int(value)
    return value


def _difference(value: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of nested mappings that differ from the defaults."""
    changed = {}
    for key, entry in value.items():
        default = defaults.get(key)
        if isinstance(entry, dict) and isinstance(default, dict):
            entry = _difference(entry, default)
            default = {}
        if entry != default:
            changed[key] = entry
    return changed


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"configuration key '{old}' was renamed to '{new}'; the old name will be removed",
        FutureWarning,
        stacklevel=3,
    )


def _refuse_type(where: str, value: Any) -> Any:
    raise ConfigError(
        f"{where} holds a value that is no YAML or JSON",
        found=repr(value),
        expected="a number, text, true, false, null, list or mapping",
    )


@functools.cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cls)


@functools.cache
def _yaml_loader() -> type[yaml.SafeLoader]:
    """Return a safe loader that reads `1e-3` as a float and a date as text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        character: [resolver for resolver in resolvers if resolver[0] != YAML_TIMESTAMP]
        for character, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", YAML_FLOAT, list("-+.0123456789"))
    return Loader


def _config_error(error: pydantic.ValidationError, cls: type, where: str) -> ConfigError:
    """Return the first problem of a validation as a ConfigError."""
    problem = error.errors()[0]
    location = problem["loc"]
    path = _path(where, location)
    kind = problem["type"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    if kind == "unexpected_keyword_argument":
        return _unknown_key(path, str(location[-1]), _class_at(cls, location[:-1]))
    found = repr(problem["input"])
    expected = problem["msg"].removeprefix("Input should be ")
    if kind == "literal_error":
        return ConfigError(f"{path} is not one of its choices", found=found, expected=expected)
    if kind.endswith("_type"):
        expected = EXPECTED_TYPES.get(kind, expected)
        return ConfigError(f"{path} has the wrong type", found=found, expected=expected)
    return ConfigError(f"{path} is not valid", found=found, expected=problem["msg"])


def _path(where: str, location: Sequence[int | str]) -> str:
    """Return a path such as `evaluate.lengths[0]`."""
    path = where
    for part in location:
        separator = "." if path else ""
        path += f"[{part}]" if isinstance(part, int) else f"{separator}{part}"
    return path


def _unknown_key(path: str, key: str, cls: Any) -> ConfigError:
    names = [field.name for field in dataclasses.fields(cls)]
    nearest = nearest_name(key, names)
    fix = f"Did you mean '{nearest}'?" if nearest else f"Known keys: {', '.join(names)}."
    return ConfigError(f"unknown configuration key '{path}'", fix=fix)


def _class_at(cls: Any, location: Sequence[int | str]) -> Any:
    """Return the dataclass of the section at a location inside another dataclass."""
    for name in location:
        cls = typing.get_type_hints(cls)[str(name)]
    return cls


def _nested_dataclasses(cls: Any) -> typing.Iterator[type]:
    """Yield the dataclasses in the fields of a dataclass, at any depth."""
    for hint in typing.get_type_hints(cls).values():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield hint
            yield from _nested_dataclasses(hint)


def _describe(schema: dict[str, Any], cls: type) -> None:
    """Add the docstring of a dataclass to its JSON schema, and refuse unknown keys."""
    schema["additionalProperties"] = False
    schema["description"] = (cls.__doc__ or "").partition("\n")[0]
    descriptions = _argument_descriptions(cls.__doc__ or "")
    for name, entry in schema["properties"].items():
        if name in descriptions and "$ref" not in entry:
            entry["description"] = descriptions[name]


def _argument_descriptions(docstring: str) -> dict[str, str]:
    """Return the descriptions below `Args:` of a docstring by the argument's name."""
    # Python 3.13 strips the indentation of docstrings; cleandoc strips it everywhere.
    arguments = inspect.cleandoc(docstring).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^ {4}(\w[\w, ]*): ", arguments, flags=re.MULTILINE)[1:]
    descriptions = {}
    for names, text in zip(entries[::2], entries[1::2], strict=True):
        for name in names.split(", "):
            descriptions[name] = " ".join(text.split())
    return descriptions
