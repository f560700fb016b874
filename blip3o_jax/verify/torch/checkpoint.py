"""A released-layout directory as PyTorch states, one network at a time, in float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip3o_jax.systems.parts import layout

DIT, EVA = "model.dit.model.", "model.gen_vision_tower.vision_tower.model."
# As transformers named them before 4.52, and since.
TEXT, VISUAL = ("model.language_model.", "model."), ("model.visual.", "visual.")
# Options of this package, which the PyTorch code has not.
OPTIONS = ("model.gen_feature_whiten.", "model.down_projector.", "model.regressor.")
TEXT_PARTS = ("embed_tokens.", "layers.", "norm.")


class Checkpoint:
  """The files of a model; a state is read when it is asked for.

  Attributes:
    path: the directory. config, tiny: its config.json, and tiny.json ({} where there is none).

  Raises:
    FileNotFoundError: no config.json or no weights. ValueError: damaged files, or a model with
      options that PyTorch has not.
  """

  def __init__(self, directory: str | Path):
    self.path = Path(directory)
    self.check(self.path)
    self.config = self._json("config.json")
    self.tiny = self._json("tiny.json") if (self.path / "tiny.json").exists() else {}
    self._tensors = layout.Files(self.path).tensors()
    options = [name for name in self._tensors if name.startswith(OPTIONS)]
    if options:
      raise ValueError(f"{directory}: {options[0]} is an option of this package, not of PyTorch's")

  @staticmethod
  def check(directory: Path) -> None:
    """Raises FileNotFoundError for a folder without a config.json."""
    if not (directory / "config.json").is_file():
      raise FileNotFoundError(f"{directory}: no config.json; not a model in the released layout")

  def state(self, *prefixes: str, parts: tuple[str, ...] = ("",)) -> dict[str, torch.Tensor]:
    """{name without the prefix: float32} under the first prefix that has any.

    Args:
      prefixes: to try in turn. parts: beginnings of what follows the prefix, to tell a network from
        others under the same prefix.

    Raises:
      ValueError: none of the prefixes is there.
    """
    for prefix in prefixes:
      wanted = tuple(prefix + part for part in parts)
      found = [name for name in self._tensors if name.startswith(wanted)]
      if found:
        return {name.removeprefix(prefix): self.tensor(name) for name in found}
    raise ValueError(f"{self.path}: no tensor under {' or '.join(prefixes)}")

  def has(self, name: str) -> bool:
    """Whether there is a tensor of that name."""
    return name in self._tensors

  def tensor(self, name: str) -> torch.Tensor:
    """One tensor, float32.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in self._tensors:
      raise ValueError(f"{self.path}: no tensor {name}")
    return torch.from_numpy(self._tensors.view(name).astype(np.float32))

  def _json(self, name: str) -> dict[str, Any]:
    try:
      return dict(json.loads((self.path / name).read_text()))
    except (ValueError, TypeError) as error:
      raise ValueError(f"{self.path / name}: not a JSON object: {error}") from None
