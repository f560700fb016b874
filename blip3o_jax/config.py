"""Frozen dataclasses <-> ConfigDict. Imports no jax; a wrong field is an error with its path.

A config file starts from `to_config(Train())` (every field present, so every field is a flag) and
edits it; `build` turns the ConfigDict into frozen dataclasses once, and below that line there is no
ConfigDict.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import types
import typing
from typing import Any
from typing import TypeVar

from ml_collections import ConfigDict

T = TypeVar("T")


def to_config(value: Any) -> ConfigDict:
  """A ConfigDict with every field of a dataclass instance, nested dataclasses included."""
  out = ConfigDict()
  for field in dataclasses.fields(value):
    item = getattr(value, field.name)
    out[field.name] = to_config(item) if dataclasses.is_dataclass(item) else item
  return out


def to_dict(value: Any) -> dict[str, Any]:
  """A JSON-ready dict of a dataclass instance."""
  return dataclasses.asdict(value)


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
  """Builds the frozen dataclass `cls` from a ConfigDict or dict.

  Args:
    cls: a dataclass; its field types are checked (bool is not int, an int becomes a float where the
      field is float, lists become tuples, Literals are checked).
    values: the fields; those with a default may be absent.
    path: prefix of the field names in errors.

  Raises:
    ValueError: unknown field (with the nearest name), missing field, wrong type or value.
  """
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
  for name in values:
    if name not in fields:
      near = difflib.get_close_matches(name, fields, 1)
      hint = f", did you mean {near[0]!r}?" if near else f"; known fields: {', '.join(fields)}"
      raise ValueError(f"{path}.{name}: no such field{hint}")
  kwargs = {}
  for name, field in fields.items():
    if name in values:
      kwargs[name] = _convert(hints[name], values[name], f"{path}.{name}")
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ValueError(f"{path}.{name}: missing, expected {_show(hints[name])}")
  try:
    return cls(**kwargs)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def parse_arg(arg: str, **spec: Any) -> ConfigDict:
  """Parses the text after ':' of a config path, `"debug,res=448"`, against defaults in `spec`.

  A bare word sets a bool to True. Values are converted to the type of the default.

  Raises:
    ValueError: an unknown word, or a value that is not of the default's type.
  """
  out = ConfigDict(spec)
  for part in filter(None, arg.split(",")):
    name, _, text = part.partition("=")
    if name not in spec:
      raise ValueError(f"config argument {name!r}: unknown, expected one of {', '.join(spec)}")
    default = spec[name]
    if isinstance(default, bool):
      if text.lower() not in ("", "true", "false"):
        raise ValueError(f"config argument {name}={text!r}: expected true or false")
      out[name] = text.lower() != "false"
    else:
      try:
        out[name] = type(default)(text)
      except ValueError:
        raise ValueError(
          f"config argument {name}={text!r}: expected {type(default).__name__}"
        ) from None
  return out


def _show(hint: Any) -> str:
  return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Checks one value against one type hint; returns it in the hint's type."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    if value not in args:
      raise ValueError(f"{path}: {value!r} is not one of {args}")
    return value
  if origin in (typing.Union, types.UnionType):
    raise ValueError(f"{path}: union types are not config types")
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, Mapping | ConfigDict):
      raise ValueError(f"{path}: expected a group of fields, got {value!r}")
    return build(typing.cast(type, hint), value, path)
  if origin is tuple:
    if not isinstance(value, tuple | list):
      raise ValueError(f"{path}: expected a tuple, got {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
      return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(args) != len(value):
      raise ValueError(f"{path}: expected {len(args)} values, got {len(value)}")
    return tuple(
      _convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
    )
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(value, bool) and hint is not bool:
    raise ValueError(f"{path}: expected {_show(hint)}, got {value!r}")
  if not isinstance(value, hint):
    raise ValueError(f"{path}: expected {_show(hint)}, got {value!r}")
  return value
