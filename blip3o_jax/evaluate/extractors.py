"""What turns pictures or texts into features: a function that is named, or one of a library.

An extractor is `module:function` or `file.py:function`. It is given uint8[B, H, W, 3] of pictures,
or a list of B texts, and gives float[B, D], with the same D for pictures and the texts about them.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
from pathlib import Path
import sys
from typing import Any

import numpy as np

from blip3o_jax import files

EXTRA = "pip install 'blip3o-jax[metrics]'"


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A function that gives features.

  Attributes:
    name: as it was asked for. fingerprint: of what it computes with, see `named`.
    call: gives float[B, D] of B pictures or texts. cut: how many texts were too long so far.
  """

  name: str
  fingerprint: str
  call: Callable[[Any], Any]
  cut: Callable[[], int] = lambda: 0

  @property
  def about(self) -> dict[str, str]:
    return {"name": self.name, "fingerprint": self.fingerprint}

  def __call__(self, values: np.ndarray | Sequence[str]) -> np.ndarray:
    """float64[B, D] of uint8[B, H, W, 3] or of B texts.

    Raises:
      ValueError: what the function gave is something else, or not finite.
    """
    found = np.asarray(self.call(values))
    if found.ndim != 2 or len(found) != len(values) or found.dtype.kind in "iubcOUSMm":
      raise ValueError(
        f"{self.name}: gave {found.dtype}{list(found.shape)}; expected float[{len(values)}, D], a "
        "row a picture or text"
      )
    out = found.astype(np.float64)
    if not np.isfinite(out).all():
      raise ValueError(f"{self.name}: gave features that are not finite")
    return out


def named(name: str) -> Extractor:
  """The function of `module:function` or `file.py:function`.

  Its fingerprint is the text `fingerprint` of the function where it has one, which may know of
  weights that it loads; else the hash of the source that it stands in.

  Raises:
    ValueError: no such module or function.
  """
  place, _, attribute = name.rpartition(":")
  if not place or not attribute.isidentifier():
    raise ValueError(f"extractor {name!r}: expected MODULE:FUNCTION or FILE.py:FUNCTION")
  module = _module(place)
  function = getattr(module, attribute, None)
  if not callable(function):
    raise ValueError(f"extractor {name!r}: {place} has no function {attribute!r}")
  own = getattr(function, "fingerprint", None)
  if own is not None and not isinstance(own, str):
    raise ValueError(f"extractor {name!r}: its fingerprint is {own!r}; expected a text")
  return Extractor(name, own or _source(module, place), function)


def _module(place: str) -> Any:
  if place.endswith(".py"):
    path = Path(place)
    if not path.is_file():
      raise ValueError(f"extractor: {place}: no such file")
    spec = importlib.util.spec_from_file_location(f"_extractor_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up there
    _told(place, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module
  return _told(place, lambda: importlib.import_module(place))


def _told(place: str, call: Callable[[], Any]) -> Any:
  """What `call` returns; an import that fails is one line."""
  try:
    return call()
  except (ImportError, SyntaxError) as error:
    raise ValueError(f"extractor: {place} cannot be imported: {error}") from error


def _source(module: Any, place: str) -> str:
  try:
    source = inspect.getsource(module)
  except (OSError, TypeError):
    raise ValueError(
      f"extractor: {place} has no source whose hash would say what it computes; give the function "
      "a text `fingerprint`"
    ) from None
  return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"


def hash_files(folder: Path) -> str:
  """The hash "sha256:..." of the names and bytes of a folder's weight, JSON and text files."""
  digest = hashlib.sha256()
  for path in files.walk(folder):
    if path.suffix in (*files.WEIGHTS, ".json", ".txt"):
      with path.open("rb") as handle:
        own = hashlib.file_digest(handle, "sha256").hexdigest()
      digest.update(f"{path.relative_to(folder).as_posix()} {own}\n".encode())
  return f"sha256:{digest.hexdigest()}"
