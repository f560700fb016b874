"""Nexus-Gen's folders in and out: V2, V1, pickles, the null condition, and what is wrong with them.

Nothing runs but the tables; the miniature's bytes come back as they were.
"""

import json
import math
from pathlib import Path

import checkpoints
import nexus_files
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax import systems
from blip3o_jax import trees
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert import manifest
from blip3o_jax.convert.source import ALL
from blip3o_jax.convert.source import Take
from blip3o_jax.convert.source import look
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import opened
from blip3o_jax.weights import store

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
FILES = (*SHARDS, "generation_decoder.safetensors", "edit_decoder.safetensors", "ae.safetensors")
EVERY = ("visual", "language", "generator", "editor", "autoencoder", "constants")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return nexus_files.copy(tmp_path_factory.mktemp("nexus") / "source")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
  """A copy that may be changed."""
  return nexus_files.copy(tmp_path / "source")


def run(source: Path, out: Path, take: Take = ALL, **options: str) -> tuple[dict, str]:
  """(manifest, what was said) of an import."""
  said: list[str] = []
  return importer.run(source, out, take, say=said.append, **options), "\n".join(said)


def test_bit_for_bit(source, tmp_path):
  made, said = run(source, tmp_path / "converted")
  assert systems.of(source) == systems.of(tmp_path / "converted") == "nexus_gen"
  assert "null condition" not in said
  assert set(made["components"]) == set(nexus_gen.COMPONENTS.values())
  for folder in (source, tmp_path / "converted"):
    cfg = nexus_gen.parts(layout.Files(folder)).cfg
    assert (cfg.parts, cfg.slots, cfg.image_token, cfg.flux.heads) == (EVERY, 81, 503, 3)
  exporter.run(tmp_path / "converted", tmp_path / "out", say=lambda _: None)
  for name in (*FILES, "null_condition.safetensors", "tiny.json", "config.json", "tokenizer.json"):
    assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
  there = {path.name for path in (tmp_path / "out").iterdir()}
  assert there == {p.name for p in source.iterdir()} | {"licences.txt"}


def test_pickles_only_when_asked(tmp_path):
  torch = pytest.importorskip("torch")
  source = nexus_files.copy(tmp_path / "source", pickles=True)
  assert systems.of(source) == "nexus_gen"
  with pytest.raises(ValueError, match=r"generation_decoder\.bin: a pickle.*--allow-pickle"):
    run(source, tmp_path / "no")
  made, _ = run(source, tmp_path / "converted", Take(allow_pickle=True), dtype="bfloat16")
  assert set(made["components"]["editor"]["dtypes"]) == {"bfloat16"}
  exporter.run(tmp_path / "converted", tmp_path / "out", say=lambda _: None)
  for name in ("generation_decoder", "edit_decoder"):
    found = checkpoints.tensors(tmp_path / "out", name)
    theirs = torch.load(source / f"{name}.bin", weights_only=True)
    assert set(found) == set(theirs)
    assert not list((tmp_path / "out").glob(f"{name}-*"))
    for tensor, value in theirs.items():
      wanted = value.to(torch.bfloat16).view(torch.int16).numpy()
      np.testing.assert_array_equal(found[tensor].view(np.int16), wanted, err_msg=tensor)


def test_safetensors_before_pickles_and_said(source, tmp_path):
  both = nexus_files.copy(tmp_path / "source")
  for name in ("generation_decoder.bin", "edit_decoder.bin"):
    (both / name).write_bytes((nexus_files.TINY / name).read_bytes())
  made, said = run(both, tmp_path / "converted", Take(allow_pickle=True))
  assert said.count("a pickle beside the safetensors") == 2
  files = made["components"]["generator"]["files"] + made["components"]["editor"]["files"]
  assert files == ["generation_decoder.safetensors", "edit_decoder.safetensors"]


def test_a_decoder_is_one_file_however_large():
  """As released, where files of a language model would be cut; a size that is asked for cuts it."""
  part = layout.new_part("generator", "", "generation_decoder", ["generator"]) | {"single": True}
  told = dict.fromkeys(("a", "b", "c"), ("BF16", (2**31,)))
  assert [f.name for f in manifest.sheet(part, told, 0).files] == ["generation_decoder.safetensors"]
  assert len(manifest.sheet(part, told, 5 * 10**9).files) == 3


def test_the_first_version(tmp_path):
  source = nexus_files.first_version(tmp_path / "source")
  assert systems.of(source) == "nexus_gen"
  _, said = run(source, tmp_path / "converted")
  assert "image_prefill_embeds.weight: 81 times row 503 of model.embed_tokens.weight" in said
  arrays = store.Arrays(tmp_path / "converted")
  words = checkpoints.tensors(source)["model.embed_tokens.weight"]
  whole = (slice(0, 81), slice(0, 64))
  repeated = np.repeat(words[nexus_files.IMAGE][None], 81, 0)
  np.testing.assert_array_equal(arrays.read("slots/embedding", whole), repeated)
  exporter.run(tmp_path / "converted", tmp_path / "out", say=lambda _: None)
  one, other = (p / "decoder_81_512.safetensors" for p in (source, tmp_path / "out"))
  assert one.read_bytes() == other.read_bytes()
  after = checkpoints.tensors(tmp_path / "out")
  np.testing.assert_array_equal(after.pop("image_prefill_embeds.weight"), repeated)
  before = checkpoints.tensors(source)
  assert set(before) == set(after)
  for name, value in before.items():
    assert value.tobytes() == after[name].tobytes(), name
  read = opened.fitting(nexus_gen, source, {"slots/embedding": (81, 64)})
  np.testing.assert_array_equal(read.read("slots/embedding", whole), repeated)


def test_the_first_versions_decoder_as_it_was_released(tmp_path):
  torch = pytest.importorskip("torch")
  source = nexus_files.first_version(tmp_path / "source")
  file = source / "decoder_81_512.safetensors"
  torch.save({n: torch.from_numpy(v) for n, v in load_file(file).items()}, file.with_suffix(".bin"))
  file.unlink()
  made, _ = run(source, tmp_path / "converted", Take(allow_pickle=True, only=["generator"]))
  assert made["components"]["generator"]["parameters"] == 338_736
  arrays = store.Arrays(tmp_path / "converted")
  found = arrays.read("generator/adapter/linear_in/kernel", (slice(0, 64), slice(0, 96)))
  np.testing.assert_array_equal(found, nexus_files.decoder()["adapter.0.weight"].T)


def test_a_plain_qwen_is_not_taken_for_it_and_fills_it(tmp_path):
  source = nexus_files.plain_qwen(tmp_path / "source")
  assert systems.of(source) == "blip3o"
  described = nexus_gen.parts(layout.Files(source))
  assert [part.modules for part in described.parts] == [("visual", "backbone")]
  wanted = {
    "backbone/norm/scale": (64,),
    "vision_head/kernel": (64, 64),
    "slots/embedding": (81, 64),
  }
  whole = described.parts[0].shapes() | wanted
  read = opened.fitting(nexus_gen, source, whole)
  assert {path.split("/")[0] for path in read} == {"backbone", "visual"}
  norm = checkpoints.tensors(source)["model.norm.weight"]
  np.testing.assert_array_equal(read.read("backbone/norm/scale", (slice(0, 64),)), norm)


# What is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("part", "change", "message"),
  [
    ("head", {"slots": 64}, "slots 64: expected 81"),
    (
      "head",
      {"slots": 64, "target_grid": [1, 16, 16], "target_pixels": 224},
      "slots is 64, but image_prefill_embeds.weight is (81, 64)",
    ),
    ("head", {"target_pixels": 224}, "target_pixels is 224, but target_grid in pixels is 252"),
    (
      "head",
      {"reference_grid": [1, 36, 34]},
      "reference_grid [1, 36, 34]: expected [1, side, side]",
    ),
    ("head", {"sampler": {"shift": 1.0}}, "shift 1.0 is not built, only 3.0"),
    ("head", {"adapter": {"layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06 is not built"),
    ("head", {"adapter": {"in": 32}}, "adapter in is 32, but config.json's hidden_size is 64"),
    ("head", {"shift": 3}, "shift 3 is no field that is known"),
    ("editor", {"merger": {"num_layers": 2}}, "num_layers is 2, but the tensors have 1"),
    (
      "constants",
      {"negative_context_tokens": 512},
      "negative_context_tokens is 512, but context is (20, 96)",
    ),
    (
      "generator",
      {"dit": {"num_double_blocks": 3}},
      "double blocks is 3, but the tensors have 2 (pipe.dit.blocks.{}.norm1_a.linear.weight)",
    ),
    (
      "editor",
      {"dit": {"pooled_dim": 32}},
      "pooled_dim is 32, but pipe.dit.pooled_text_embedder.0.weight is (48, 24)",
    ),
    (
      "generator",
      {"dit": {"mlp_ratio": 3}},
      "dim times mlp_ratio is 144, but pipe.dit.blocks.0.ff_a.0.weight is (192, 48)",
    ),
    (
      "autoencoder",
      {"vae": {"ch": 16}},
      "block_out_channels[0] is 16, but encoder.down.0.block.0.conv1.weight is (8, 8, 3, 3)",
    ),
    (
      "autoencoder",
      {"vae": {"num_res_blocks": 1}},
      "layers_per_block is 1, but the tensors have 2 (encoder.down.0.block.{}.conv1.weight)",
    ),
  ],
)
def test_a_size_that_does_not_fit_is_named(mine, part, change, message):
  values = json.loads((mine / "tiny.json").read_text())
  group, _ = next(iter(change.items()))
  if group in ("dit", "vae"):
    change = {group: values[group] | change[group]}
  checkpoints.edit(mine / "tiny.json", **change)
  with pytest.raises(ValueError, match=r"tiny\.json") as error:
    look(mine, Take(only=[part]))
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("part", "file"), [("editor", "edit_decoder.safetensors"), ("autoencoder", "ae.safetensors")]
)
def test_every_tensor_is_accounted_for(mine, part, file):
  path, only = mine / file, Take(only=[part])
  values = load_file(path)
  name = next(iter(values))
  held = values.pop(name)
  for extra, message in (
    ({}, f"missing {name}"),
    ({name: held, "extra.weight": held}, "unexpected extra.weight"),
    ({name: held[:-1]}, f"shape of {name}"),
  ):
    save_file({**values, **extra}, path)
    with pytest.raises(ValueError, match=message):
      look(mine, only)
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(ValueError, match=f"{file}: truncated"):
    look(mine, only)


def test_without_the_null_condition_it_is_said_how_to_make_it(tmp_path):
  source = nexus_files.copy(tmp_path / "source", null=False)
  made, said = run(source, tmp_path / "converted")
  assert "python tools/null_condition.py --clip FLUX.1-dev/text_encoder" in said
  assert "constants" not in made["components"]
  cfg = nexus_gen.parts(layout.Files(tmp_path / "converted")).cfg
  assert cfg.parts == EVERY[:-1]


def test_a_token_that_the_table_has_not(mine):
  checkpoints.edit(mine / "config.json", image_token_id=5000)
  with pytest.raises(ValueError, match=r"image_token.*5000.*vocab_size 520"):
    look(mine)


# Full size ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> dict[str, tuple[int, ...]]:
  """{path: shape} of the released system; nothing is allocated."""
  return layout.shapes(lambda rngs: nexus_gen.build(sizes.released(), rngs))()


@pytest.mark.parametrize(
  ("modules", "count", "commercial"),
  [
    (("backbone", "visual", "vision_head", "slots"), 8_305_302_016, True),
    (("backbone", "visual", "vision_head"), 8_305_011_712, True),  # V1 lacks the prefill table
    (("generator",), 11_932_890_176, False),
    (("editor",), 12_260_339_776, False),
    (("autoencoder",), 83_819_683, True),
    (("constants",), 768 + 512 * 4096, True),
  ],
)
def test_counts_and_licences_at_full_size(full, modules, count, commercial):
  """The tables against the manifests are in test_manifests; here the numbers of spec 1."""
  sizes_of: dict[str, int] = {}
  for path, shape in full.items():
    sizes_of[trees.top(path)] = sizes_of.get(trees.top(path), 0) + math.prod(shape)
  assert sum(sizes_of[m] for m in modules) == count
  for component in {nexus_gen.COMPONENTS[m] for m in modules}:
    whole = sum(n for m, n in sizes_of.items() if nexus_gen.COMPONENTS[m] == component)
    licence = nexus_gen.licence(component, None, whole)
    assert (licence.commercial, licence.name != "unknown") == (commercial, True)
