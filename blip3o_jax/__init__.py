"""BLIP3-o in JAX and Flax: unified multimodal models that read images and make them.

The public names are those of `__all__`; `load` is where one begins.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from blip3o_jax.use.answer import Answer
  from blip3o_jax.use.model import Model
  from blip3o_jax.use.model import Progress
  from blip3o_jax.use.picture import Picture

__version__ = "0.1.0"
_PLACES = {
  "Answer": "use.answer",
  "Model": "use.model",
  "Picture": "use.picture",
  "Progress": "use.model",
}
__all__ = ["Answer", "Model", "Picture", "Progress", "load"]


def load(
  model: str | Path | None = None,
  *,
  dtype: Literal["float32", "bfloat16"] = "float32",
  mesh: "Mesh | str | None" = None,
  weights: Literal["float", "int8"] = "float",
  offload: bool = False,
  tile: int = 0,
  verb: str = "",
) -> "Model":
  """A model, ready to draw, answer, edit or reconstruct: whatever its system can.

  Args:
    model: a directory, released, converted or of a run, or a hub id ("owner/name" where no such
      directory exists, or "hf://owner/name"), which is fetched; "miniature" is the one that ships
      with the package, "miniature:nexus_gen" the one of that system; None is the first of them, or
      the first that has the verb.
    dtype: that parameters are stored in and computed with.
    mesh: devices over which parameters and batches are spread, as in training: a mesh of jax of
      the axes replica, fsdp and tensor, or its sizes in words, "fsdp=4,tensor=2". None is
      the default device; on a CPU JAX is asked for a second one, on which half of a single picture
      is computed, unless it runs already or `JAX_NUM_CPU_DEVICES` is set.
    weights: "int8": the blocks of language model and denoiser are stored so, each kernel with a
      scale a column; see docs/memory.md for the error.
    offload: parameters stay in the host's memory, and those that a stage needs come to the device.
    tile: pixels a side above which pictures are decoded tile by tile; 0 is never.
    verb: what the model must be able to do, asked before anything is read.

  Raises:
    FileNotFoundError, ValueError: what is absent or wrong, by file and name; a system without the
      verb.
  """
  # Here, so that the command answers --help without jax.
  from blip3o_jax import runtime

  runtime.prepare()
  from blip3o_jax.systems.parts import cores
  from blip3o_jax.systems.parts import memory as memories
  from blip3o_jax.use import model as using

  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"dtype {dtype!r}: expected 'float32' or 'bfloat16'")
  if weights not in ("float", "int8"):
    raise ValueError(f"weights {weights!r}: expected 'float' or 'int8'")
  if mesh is None:
    cores.ask()
  memory = memories.asked(mesh, offload=offload, int8=weights == "int8", tile=tile)
  return using.load(model, dtype=dtype, memory=memory, verb=verb)


def __getattr__(name: str) -> Any:
  """The public classes, imported when they are asked for: they bring jax."""
  if name in _PLACES:
    return getattr(import_module(f"blip3o_jax.{_PLACES[name]}"), name)
  raise AttributeError(f"module 'blip3o_jax' has no attribute {name!r}")
