"""Tables of the pixel decoder: every key of the full-size manifests, older names, both ways."""

import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import numpy as np
import pytest
import tables

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import autoencoder as autoencoder_rows

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"
RELEASED = pixels.Config(unet.VARIANTS["emu2_gen"], autoencoder.VARIANTS["sdxl"])

TABLES = {
  "unet": decoder_files.unet_table(RELEASED.unet),
  "autoencoder": decoder_files.vae_table(RELEASED.autoencoder),
}


def shapes(network: str) -> dict[str, tuple[int, ...]]:
  """{path: shape} of one network of the released size."""
  module = nnx.eval_shape(lambda: pixels.build(RELEASED, nnx.Rngs(0)))
  state = nnx.state(getattr(module, network))
  return {p: tuple(v.shape) for p, v in trees.flatten(nnx.to_pure_dict(state)).items()}


@pytest.mark.parametrize(
  ("network", "manifest"), [("unet", "sdxl_unet_eva"), ("autoencoder", "sdxl_vae")]
)
def test_every_key_of_the_manifest(network: str, manifest: str) -> None:
  tensors: dict[str, Any] = json.loads((MANIFESTS / f"{manifest}.json").read_text())
  rows, params = TABLES[network], shapes(network)
  sources = table.plan(rows, tensors, params, where=manifest)
  assert {name for s in sources.values() for name in s.names} == set(tensors)
  for name in list(tensors)[:: len(tensors) // 7]:
    damaged = {n: s for n, s in tensors.items() if n != name} | {f"{name}.odd": tensors[name]}
    with pytest.raises(table.WeightsError, match="2 fault") as error:
      table.plan(rows, damaged, params)
    assert f"missing {name}" in str(error.value)
    assert f"unexpected {name}.odd" in str(error.value)


def test_every_key_of_the_flux_manifest() -> None:
  """In the names of its own files, where the attention's layers are 1x1 convolutions."""
  cfg = autoencoder.VARIANTS["flux"]
  tensors: dict[str, Any] = json.loads((MANIFESTS / "nexus_gen_vae.json").read_text())
  state = nnx.state(layers.abstract(lambda rngs: autoencoder.Autoencoder(cfg, rngs=rngs)))
  params = {p: tuple(v.shape) for p, v in trees.flatten(nnx.to_pure_dict(state)).items()}
  plain = decoder_files.vae_table(cfg)
  assert autoencoder_rows.naming(tensors) == "bfl"
  assert autoencoder_rows.naming(r.name for r in plain) == "diffusers"
  rows = autoencoder_rows.adapt(plain, tensors)
  sources = table.plan(rows, tensors, params)
  assert {name for s in sources.values() for name in s.names} == set(tensors)
  # The deepest level of the decoder is its first here and has the highest number there.
  assert sources["decoder/up_blocks/0/resnets/2/conv1/kernel"].names == (
    "decoder.up.3.block.2.conv1.weight",
  )
  assert tensors["decoder.mid.attn_1.q.weight"] == [512, 512, 1, 1]
  flat = tensors | {"decoder.mid.attn_1.q.weight": [512, 512]}
  with pytest.raises(table.WeightsError, match=r"attn_1\.q\.weight: expected"):
    table.plan(rows, flat, params)


def test_older_attention_names() -> None:
  rows = TABLES["autoencoder"]
  assert autoencoder_rows.adapt(rows, [r.name for r in rows]) == rows
  old = [
    r.name for r in autoencoder_rows.adapt(rows, ["decoder.mid_block.attentions.0.query.bias"])
  ]
  assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
  assert not [name for name in old if ".to_" in name]
  assert autoencoder_rows.adapt(rows, old)[0] == rows[0]


def test_export_is_the_inverse() -> None:
  rows = TABLES["unet"]
  block = [r for r in rows if r.name.startswith("mid_block.attentions.0.transformer_blocks.{}.ff")]
  paths = {p: s for p, s in shapes("unet").items() if any(p in r.paths for r in block)}
  small = {p: (s[0], *(n // 160 for n in s[1:])) for p, s in paths.items()}
  keys = jax.random.split(jax.random.key(0), len(small))
  params = {p: jax.random.normal(k, s) for k, (p, s) in zip(keys, small.items(), strict=True)}
  files = dict(table.export(block, params))
  assert files["mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj.weight"].shape == (64, 8)
  abstract = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in params.items()}
  plan = table.plan(block, {n: v.shape for n, v in files.items()}, small)
  again = tables.filled(plan, lambda name, index: files[name][index], abstract)
  for path, value in params.items():
    np.testing.assert_array_equal(again[path], value)
