"""PyTorch's pickled weights (`.bin`), weights only; their bytes are mapped, not loaded.

A pickle can run code when it is loaded. torch's `weights_only` refuses all but tensors and plain
containers, and nothing here is called without the user's word.
"""

from collections.abc import Iterator
from pathlib import Path
import pickletools
from typing import Any
import zipfile

import numpy as np

from blip3o_jax.weights import safetensors
from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape

# Files of training scripts keep the tensors one level deeper.
NESTED = ("state_dict", "model", "module")


class Pickles(Reader):
  """{name: shape} of the tensors of pickled files; the counterpart of `safetensors.Tensors`.

  Args:
    paths: the files. index: of several ones, if any.

  Raises:
    ValueError: torch is absent; a file that is damaged, of the layout before torch 1.6, or holds
      anything but tensors; a dtype that is not supported; a name that occurs twice.
  """

  def __init__(self, paths: list[Path], index: Path | None = None):
    self.index = index
    self.files: dict[Path, dict[str, str]] = {path: {} for path in paths}
    self._where: dict[str, tuple[Path, int]] = {}
    self._views: dict[str, np.ndarray] = {}
    for path in paths:
      for number, (name, view) in enumerate(_load(path)):
        if name in self._views:
          raise ValueError(f"{name}: present in {self._where[name][0].name} and in {path.name}")
        self._views[name], self._where[name] = view, (path, number)

  def __getitem__(self, name: str) -> Shape:
    return self._views[name].shape

  def __iter__(self) -> Iterator[str]:
    return iter(self._views)

  def __len__(self) -> int:
    return len(self._views)

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""
    return self._views[name].dtype

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and its place among those of the file."""
    return self._where[name]

  def view(self, name: str) -> np.ndarray:
    """A whole tensor; its bytes come from the file when touched."""
    return self._views[name]


def find(folder: Path, stem: str) -> tuple[list[Path], Path | None]:
  """The pickled weights of a folder and their index; ([], None) where there are none.

  Raises:
    ValueError: a damaged index, or one that leaves the folder. FileNotFoundError: an absent file.
  """
  index = folder / f"{stem}.bin.index.json"
  if not index.is_file():
    return [p for p in (folder / f"{stem}.bin",) if p.is_file()], None
  return list(safetensors.read_index(index)), index


def strings(path: Path) -> set[str]:
  """The strings in a pickled file, the names of its tensors among them; nothing is executed.

  Returns:
    An empty set for a file that is no archive of torch 1.6 or newer.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
      data = archive.read(name)
    return {value for _, value, _ in pickletools.genops(data) if isinstance(value, str)}
  except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
    return set()


def _load(path: Path) -> Iterator[tuple[str, np.ndarray]]:
  try:
    import torch
  except ImportError:
    raise ValueError(f"{path}: reading a pickle needs torch; install blip3o-jax[test]") from None
  try:
    found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
  except Exception as error:  # whatever a damaged or hostile file makes torch raise
    text = " ".join(str(error).split())[:300]
    raise ValueError(f"{path}: not a file of weights alone: {text}") from None
  while isinstance(found, dict) and len(found) < 10 and set(found) & set(NESTED):
    found = found[next(key for key in NESTED if key in found)]
  if not isinstance(found, dict) or not found:
    raise ValueError(f"{path}: expected a dict of tensors, found {type(found).__name__}")
  for name, value in found.items():
    if not isinstance(value, torch.Tensor):
      raise ValueError(f"{path}: {name!r} is {type(value).__name__}, expected a tensor")
    yield str(name), _array(path, str(name), value)


def _array(path: Path, name: str, value: Any) -> np.ndarray:
  import torch

  kinds = {getattr(torch, str(d)): d for d in safetensors.DTYPES.values() if str(d) != "bool"}
  if value.dtype not in kinds:
    raise ValueError(
      f"{path}: {name} is stored as {value.dtype}, which is not supported: float8 and int8 are "
      "quantised weights"
    )
  dtype = kinds[value.dtype]
  if value.dtype == torch.bfloat16:
    value = value.view(torch.int16)  # numpy knows no bfloat16
  return value.detach().numpy().view(dtype)
