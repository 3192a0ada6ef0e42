"""The settings as flags: generated from `RerankConfig`, so that no name is written twice."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, get_args, get_origin

from rerank_plugins.config import ENV_PREFIX, RerankConfig
from rerank_plugins.settings import FUNCTION_SETTINGS, SECRET_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic.fields import FieldInfo


def setting_names() -> list[str]:
    """Return the settings that can be written on a command line: no functions, no secrets."""
    left_out = FUNCTION_SETTINGS | SECRET_SETTINGS
    return [name for name in RerankConfig.model_fields if name not in left_out]


def add_settings(
    parser: argparse.ArgumentParser,
    *,
    positional_model: bool = False,
    only: Collection[str] | None = None,
) -> None:
    """Add a flag for each setting, in a group of its own; *positional_model* leaves out --model.

    Where *only* is given, the flags are those alone.
    """
    group = parser.add_argument_group(
        "settings", f"Each is also read from {ENV_PREFIX}<NAME>; a flag wins."
    )
    for name in setting_names():
        if (name == "model" and positional_model) or (only is not None and name not in only):
            continue
        _add_setting(group, name, RerankConfig.model_fields[name])


def chosen_config(args: argparse.Namespace) -> RerankConfig:
    """Return the settings of variables with those of the command line over them.

    Raises:
        ConfigError: a setting is out of range or at odds with another one.
    """
    flags = {
        name: str(getattr(args, name))
        for name in setting_names()
        if getattr(args, name, None) is not None
    }
    # Both are texts to one parser, so that a value means the same in a flag and in a variable.
    return RerankConfig.from_env(overrides=flags)


def _add_setting(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    flag = f"--{name.replace('_', '-')}"
    kind = _kind(field)
    # No default here: a flag that was not given must not hide a variable.
    if kind is bool:
        group.add_argument(
            flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=_help(field)
        )
    elif issubclass(kind, StrEnum):
        choices = [member.value for member in kind]
        group.add_argument(flag, dest=name, choices=choices, help=_help(field))
    else:
        metavar = _LISTS.get(name) or _METAVARS.get(kind, "NAME")
        group.add_argument(flag, dest=name, metavar=metavar, help=_help(field))


_LISTS: dict[str, str] = {
    "language_models": "LANGUAGE=MODEL,...",
    "replicas": "N|DEVICE,...",
    "fallback": "NAME,...",
}

_METAVARS: dict[type, str] = {int: "N", float: "NUMBER"}


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default is False or default == {}:
        return text
    written = ",".join(default) if isinstance(default, tuple) else default
    return f"{text} (default: {written})"


def _kind(field: FieldInfo) -> type:
    """Return the type of a setting's value, None aside."""
    for part in _parts(field):
        found = get_origin(part) or part
        if isinstance(found, type) and found is not type(None):
            return found
    raise TypeError(f"a setting of type {field.annotation!r} has no flag")


def _parts(field: FieldInfo) -> tuple[Any, ...]:
    """Return the members of a union, or the one type that there is."""
    annotation = field.annotation
    plain = isinstance(annotation, type) or get_origin(annotation) is Mapping
    return (annotation,) if plain else get_args(annotation)
