"""BLIP3-o in JAX and Flax: a unified multimodal model that reads images and makes them."""

from pathlib import Path
from typing import Any
from typing import Literal

__version__ = "0.1.0"
__all__ = ["load"]


def load(
  model: str | Path | None = None,
  *,
  dtype: Literal["float32", "bfloat16"] = "float32",
  verb: str = "",
) -> Any:
  """A loaded model with the verbs of its system, as the command's `--model` names it.

  Args:
    model: a directory, released, converted or of a run, or a hub id ("owner/name" where no such
      directory exists, or "hf://owner/name"), which is fetched; None is the miniature that ships
      with the package.
    dtype: that parameters are stored in and computed with.
    verb: what the model must be able to do, asked before anything is read.

  Returns:
    What `systems.System.load` says: `generate`, `chat`, `edit` and `reconstruct`, or those of them
    that the system has.

  Raises:
    FileNotFoundError, ValueError: what is absent or wrong, by file and name; a system without the
      verb.
  """
  # Here, so that the command answers --help without them.
  from blip3o_jax import systems
  from blip3o_jax.miniature import shipped
  from blip3o_jax.weights import hub

  if model is None:
    shipped.verify()
  directory = shipped.directory() if model is None else hub.local_directory(str(model))
  kind = systems.of(directory)
  system = systems.SYSTEMS[kind]
  if verb and verb not in system.VERBS:
    name = shipped.NAME if model is None else model
    able = ", ".join(system.VERBS) or "do nothing by itself"
    raise ValueError(f"{name}: a model of the system {kind} cannot {verb}; it can {able}")
  return system.load(directory, dtype=dtype)
