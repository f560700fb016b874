"""Nexus-Gen's files as we write them, in the classes of transformers and diffusers."""

from pathlib import Path

import checkpoints
import nexus_files
import numpy as np
import pytest
from safetensors.numpy import load_file

from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert.source import Take

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The miniature in and out again, its decoders from their pickles."""
  home = tmp_path_factory.mktemp("nexus")
  source = nexus_files.copy(home / "source", pickles=True)
  importer.run(source, home / "converted", Take(allow_pickle=True), say=lambda _: None)
  exporter.run(home / "converted", home / "out", say=lambda _: None)
  return home / "out"


def test_stock_transformers_reads_the_language_model(written, check):
  """It leaves the two additions aside, misses nothing, and gives the recorded logits."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  theirs, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    written, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
  )
  assert set(info["unexpected_keys"]) == set(nexus_files.ADDED)
  assert not info["missing_keys"]
  assert not info["mismatched_keys"]
  recorded = load_file(nexus_files.TINY / "io.safetensors")
  tokens = torch.from_numpy(recorded["und.input_ids"])
  with torch.no_grad():
    found = theirs.eval()(
      input_ids=tokens,
      attention_mask=torch.ones_like(tokens),
      pixel_values=torch.from_numpy(recorded["und.pixel_values"]),
      image_grid_thw=torch.from_numpy(recorded["und.image_grid_thw"]),
      mm_token_type_ids=(tokens == nexus_files.IMAGE).int(),
    ).logits.numpy()
  check("nexus export in transformers: und.logits", found, 3e-6, recorded["und.logits"])


def test_a_plain_reader_of_the_decoders(written):
  """Every tensor of the released pickles under its name, bit for bit."""
  torch = pytest.importorskip("torch")
  for name in ("generation_decoder", "edit_decoder"):
    theirs = torch.load(nexus_files.TINY / f"{name}.bin", weights_only=True)
    ours = checkpoints.tensors(written, name)
    assert set(ours) == set(theirs)
    for tensor, value in theirs.items():
      np.testing.assert_array_equal(ours[tensor], value.numpy(), err_msg=tensor)
