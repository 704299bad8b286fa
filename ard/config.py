"""Configuration: sections of params.yaml as frozen, strictly typed dataclasses; a wrong key is an error that names it.

The stage runner checks notebook parameters with it; models and trainers get their settings through `from_dict`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ard.files import PathLike

T = TypeVar("T")


class ConfigError(ValueError):
    """A wrong setting: the message names the file and key, what was found, and the nearest right one."""


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    """A hint naming the choice nearest to `word`, or all of them when none is near.

    >>> nearest("stesp", ["steps", "seed"])
    "did you mean 'steps'?"
    """
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(choices)) or 'none'}"


def read_yaml(path: PathLike) -> dict[str, Any]:
    """Read a YAML 1.2 mapping as DVC does: `1e-4` is a number, `no` a word, and a key that stands twice is refused."""
    path = Path(path)
    try:
        loaded = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(loaded).__name__}")
    return loaded


def load_params(path: PathLike = "params.yaml", stage: str | None = None) -> dict[str, Any]:
    """The section `stage` of a parameter file, or all sections. Raises ConfigError naming the nearest section."""
    sections = read_yaml(path)
    if stage is None:
        return sections
    if stage not in sections:
        raise ConfigError(f"{path}: no section '{stage}'; {nearest(stage, sections)}")
    return {} if sections[stage] is None else _mapping(sections[stage], f"{path}:{stage}")


def from_dict(cls: type[T], values: dict[str, Any], where: str = "params.yaml") -> T:
    """Build dataclass `cls` from `values`, strictly: no unknown key, none missing without a default, types as given.

    An integer serves as a float; lists become tuples where the annotation says so; nested dataclasses are built from
    mappings. `where` (as "params.yaml:phase1") opens every ConfigError.
    """
    _mapping(values, where)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{key}'; {nearest(key, fields)}")
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise ConfigError(f"{where}: missing key '{name}' ({_name(hints[name])})")
    return cls(**{key: check(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def check(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind` (int, float, bool, str, None, list, dict, tuple, union, Literal, dataclass), or ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_dict(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _check_union(value, kind, where)
    if origin is typing.Literal:
        if value not in arguments or type(value) not in {type(a) for a in arguments}:
            hint = nearest(value, arguments)
            raise ConfigError(f"{where}: expected one of {list(arguments)}, found {value!r}; {hint}")
        return value
    if (origin or kind) in (list, tuple):
        return _check_sequence(value, kind, where)
    if origin is dict:
        return {check(k, arguments[0], f"{where} key {k!r}"): check(v, arguments[1], f"{where}.{k}")
                for k, v in _mapping(value, where).items()}
    if kind is None or kind is type(None):
        return value if value is None else _mistyped(value, kind, where)
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else _mistyped(value, kind, where)


def _check_union(value: Any, kind: Any, where: str) -> Any:
    for option in sorted(typing.get_args(kind), key=lambda option: option is not type(value)):
        try:
            return check(value, option, where)
        except ConfigError:
            continue
    return _mistyped(value, kind, where)


def _check_sequence(value: Any, kind: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if not isinstance(value, (list, tuple)):
        return _mistyped(value, kind, where)
    fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{where}: expected {len(arguments)} items, found {len(value)}")
    kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
    return origin(check(item, item_kind, f"{where}[{i}]") for i, (item, item_kind) in enumerate(zip(value, kinds)))


def _mapping(value: Any, where: str) -> dict:
    return value if isinstance(value, dict) else _mistyped(value, dict, where)


def _mistyped(value: Any, kind: Any, where: str) -> typing.NoReturn:
    raise ConfigError(f"{where}: expected {_name(kind)}, found {value!r} ({type(value).__name__})")


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")
