"""The recorded miniature, converted once."""

from pathlib import Path
import shutil

import checkpoints
import pytest

from blip3o_jax.convert import importer

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A converted directory of the miniature; not to be changed."""
  out = tmp_path_factory.mktemp("converted") / "tiny"
  importer.run(TINY, out, say=lambda _: None)
  return out


@pytest.fixture(scope="session")
def values() -> checkpoints.Values:
  """The tensors that the rows are about, those of the language model and the generator."""
  left_out = ("visual.", "model.gen_")
  return {n: v for n, v in checkpoints.tensors().items() if not n.startswith(left_out)}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
  """The miniature's JSON files, without weights."""
  leave = shutil.ignore_patterns("*.safetensors*", "eva_clip_vision_tower", "diffusion-decoder")
  shutil.copytree(checkpoints.TINY, tmp_path / "source", ignore=leave)
  return tmp_path / "source"
