"""The recorded miniature, converted once."""

from pathlib import Path

import pytest

from blip3o_jax.convert import importer

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A converted directory of the miniature; not to be changed."""
  out = tmp_path_factory.mktemp("converted") / "tiny"
  importer.run(TINY, out, say=lambda _: None)
  return out
