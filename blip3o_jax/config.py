"""Config files, and frozen dataclasses <-> ConfigDict. A wrong field is an error with its path.

A config file starts from `to_config(Train())` (every field present, so every field is a flag) and
edits it; `load` reads it for a command and puts flags into it; `build` turns the ConfigDict into
frozen dataclasses once, and below that line there is no ConfigDict. Imports no jax.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import importlib.util
from pathlib import Path
import re
import types
import typing
from typing import Any
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict
from ml_collections import config_flags

T = TypeVar("T")
GetConfig = Callable[[str], ConfigDict]
NONE: Mapping[str, GetConfig] = types.MappingProxyType({})


def load(
  source: str | ConfigDict, overrides: Sequence[str] = (), named: Mapping[str, GetConfig] = NONE
) -> ConfigDict:
  """The ConfigDict of a source, with overrides ["--config.field=value", ...] put in.

  Args:
    source: FILE[:ARG], what `get_config(ARG)` of that Python file returns; NAME[:ARG], where there
      is no such file; or a ConfigDict, which stays as it is.
    named: {NAME: its get_config}, what else there is beside files.

  Raises:
    FileNotFoundError: no such file, and no such name.
    ValueError: a file without get_config, an unknown field, a value of the wrong type.
  """
  if isinstance(source, str):
    out = _described(source, named)
  else:
    out = source.copy_and_resolve_references()
  for word in overrides:
    if word.startswith("-"):
      _check_field(out, word)
  values, argv = flags.FlagValues(), ["command", *overrides]
  try:
    config_flags.DEFINE_config_dict("config", out, flag_values=values, sys_argv=argv)
    rest = values(argv)[1:]
  except (flags.Error, TypeError) as error:
    raise ValueError(" ".join(str(error).split())) from None
  if rest:
    raise ValueError(f"{rest[0]!r}: unexpected; fields are given as --config.field=value")
  return out


def lines(value: Any) -> Iterator[str]:
  """A line for each field of a ConfigDict, as it can be given."""
  for name, text in fields(value):
    yield f"--{name}={text}"


def fields(value: Any, name: str = "config") -> Iterator[tuple[str, str]]:
  """Name and value of each field of a ConfigDict, as texts."""
  if not hasattr(value, "keys"):
    yield name, repr(value)
    return
  for key in value:
    yield from fields(value[key], f"{name}.{key}")


def to_config(value: Any) -> ConfigDict:
  """A ConfigDict with every field of a dataclass instance, nested dataclasses included.

  Those in a tuple become dicts, as a config file writes them.
  """
  out = ConfigDict()
  for field in dataclasses.fields(value):
    item = getattr(value, field.name)
    if isinstance(item, tuple):
      item = tuple(to_dict(one) if dataclasses.is_dataclass(one) else one for one in item)
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


def refuse_unread(values: Any, unread: Mapping[str, str]) -> None:
  """Refuses fields of a dataclass that nothing will read, where they are set.

  Args:
    unread: {field: why it is not read}.

  Raises:
    ValueError: a field that is not at its default, by name and value.
  """
  for field in dataclasses.fields(values):
    value = getattr(values, field.name)
    if field.name in unread and value != field.default:
      why = unread[field.name]
      raise ValueError(f"{field.name} {value!r}: {why}, so leave it at {field.default!r}")


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


def check_choice(options: ConfigDict, name: str, *known: str) -> None:
  """Checks an argument of `parse_arg` that is one of a few words; "" among them is none given.

  Raises:
    ValueError: another word.
  """
  if options[name] not in known:
    *most, last = filter(None, known)
    told = f"{', '.join(most)} or {last}" if most else last
    raise ValueError(f"config argument {name}={options[name]!r}: expected {told}")


def _described(source: str, named: Mapping[str, GetConfig]) -> ConfigDict:
  """What FILE[:ARG] or NAME[:ARG] describes."""
  name, _, argument = source.partition(":")
  if not Path(name).is_file():
    if name in named:
      return named[name](argument)
    known = f", and none of {', '.join(named)}" if named else ""
    raise FileNotFoundError(f"--config {name}: no such file{known}")
  spec = importlib.util.spec_from_file_location(Path(name).stem, name)
  if spec is None or spec.loader is None:
    raise ValueError(f"--config {name}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ValueError(f"--config {name}: defines no get_config")
  return module.get_config(argument)


def _check_field(config: Any, word: str) -> None:
  """Raises ValueError for an override of a field that the config lacks."""
  name = word.lstrip("-").partition("=")[0]
  if not name.startswith("config."):
    raise ValueError(f"{word.partition('=')[0]}: unknown option; fields are --config.field=value")
  path, node = "config", config
  for part in name.split(".")[1:]:
    known = list(node) if hasattr(node, "keys") else []
    key = re.sub(r"\[\d+\]$", "", part)  # an element of a tuple
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = (
        f", did you mean {near[0]!r}?" if near else f"; {path} has {', '.join(known) or 'none'}"
      )
      raise ValueError(f"{path}.{key}: no such field{hint}")
    path, node = f"{path}.{key}", node[key]


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
