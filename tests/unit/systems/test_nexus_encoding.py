"""What a cache of Nexus-Gen's decoders keeps, and that the loss from it is the live one."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import nexus_files
import numpy as np
import pytest
import test_nexus_speaking

from blip3o_jax import config
from blip3o_jax.data.batch import Batch
from blip3o_jax.data.options import Data
from blip3o_jax.data.records import Record
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.models import autoencoder
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.train import cached

TOK = Tokenizer.load(nexus_files.TINY, prompts.SPECIAL)
# Smaller than the recorded miniature, and its vocabulary.
CFG = dataclasses.replace(
  test_nexus_speaking.CFG,
  backbone=dataclasses.replace(test_nexus_speaking.CFG.backbone, vocab_size=520),
  flux=dataclasses.replace(test_nexus_speaking.CFG.flux, single_depth=1),
  autoencoder=autoencoder.Config(
    latent_channels=16, channels=(8, 8, 8, 8), depth=1, groups=4, quant_conv=False
  ),
  reference_grid=12,
  null_tokens=4,
  image_token=503,
  boi=501,
  eoi=502,
  form=prompts.Form(max_pixels=24**2),
  parts=model.PARTS,
)
EDITING = dataclasses.replace(CFG, stage="editing")
GENERATION = dataclasses.replace(CFG, stage="generation")
DATA = dict(image_size=32, buckets=(128,))


def picture(seed: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (48 + 8 * seed, 64, 3), np.uint8)


RECORDS = [
  Record(image=picture(i), inputs=(picture(i + 2),), prompt=f"make it {i}", name=f"r{i}")
  for i in range(2)
]


@pytest.fixture(scope="module")
def network(fill: Callable[..., Any]) -> Network:
  return Network.of(fill(lambda: model.build(CFG, nnx.Rngs(0))))


def stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  batch = Batch(len(rows))
  for i, row in enumerate(rows):
    batch.put(i, row)
  return batch.taken()


@pytest.mark.parametrize(
  ("cfg", "task"),
  [pytest.param(GENERATION, "generate", marks=pytest.mark.slow), (EDITING, "edit")],
)
def test_the_loss_from_a_cache_is_the_live_one(network: Network, cfg: Any, task: str):
  """Rows of the encoder, its features as records keep them, a run without the other networks."""
  rng = np.random.default_rng(0)
  data = Data(task=task, **DATA)
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: model.build(cfg, nnx.Rngs(0))))

  def loss(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    module = nnx.merge(graphdef, params)
    made = module.prepare(batch)
    value, _ = module.loss(made, jax.random.key(3), module.weights(batch))
    return made["features"], value

  (live,) = nexus_gen.transforms(cfg, data, TOK).values()
  records = RECORDS
  if cfg is GENERATION:
    records = [dataclasses.replace(r, inputs=()) for r in RECORDS]
  encoder = nexus_gen.encoder(dataclasses.replace(cfg, parts=(model.TRAINS[cfg.stage],)))
  row, whole = encoder.rows(data, TOK), stacked([live(r, rng) for r in records])
  told = stacked([row(r) for r in records])
  assert whole.keys() - told.keys() == {"pixels"}
  for name, value in told.items():
    np.testing.assert_array_equal(value, whole[name])
  features, wanted = jax.jit(loss)(network.params, whole)
  found = np.asarray(features).reshape(-1, *encoder.shape)
  assert found.shape == {"generate": (2, 3, 3, 16), "edit": (2, 1, 45, 16)}[task]
  kept = [dataclasses.replace(r, features=f) for r, f in zip(records, found, strict=True)]
  bare = dataclasses.replace(cfg, parts=(model.TRAINS[cfg.stage], "autoencoder", "constants"))
  (cached_row,) = nexus_gen.transforms(
    bare, dataclasses.replace(data, features=True), None
  ).values()
  batch = stacked([cached_row(r, rng) for r in kept])
  assert sorted(batch) == ["features", "pixels"]
  assert float(wanted) > 0
  again = jax.jit(loss)
  np.testing.assert_allclose(again(network.params, batch)[1], wanted, rtol=1e-5)
  # Other features tell another thing.
  batch["features"] = batch["features"][::-1]
  assert abs(float(again(network.params, batch)[1]) / float(wanted) - 1) > 1e-4


def test_what_decides_the_features():
  found = nexus_gen.encoder(EDITING)
  assert found.modules == ("visual", "backbone", "vision_head", "slots")
  assert found.texts
  data = Data(task="edit", **DATA)
  read = cached.transform(data, found)
  assert read == {"friendly": True, "buckets": [128], "resize": "horizontal first"}
  for form in (
    prompts.Form("zh", 24**2),
    prompts.Form("en", 32**2),
    prompts.Form("en", 24**2, "bilinear"),
  ):
    assert nexus_gen.encoder(dataclasses.replace(EDITING, form=form)).design != found.design
  small = dataclasses.replace(EDITING, reference_grid=6)
  assert nexus_gen.encoder(small).design != found.design
  assert nexus_gen.encoder(small).shape == (1, 18, 16)
  # How a network is trained through decides nothing, nor does what a decoder looks like.
  slow = dataclasses.replace(CFG.visual, remat="full")
  assert nexus_gen.encoder(dataclasses.replace(EDITING, visual=slow)).design == found.design
  other = dataclasses.replace(EDITING, flux=dataclasses.replace(CFG.flux, double_depth=1))
  assert nexus_gen.encoder(other).design == found.design
  alone = nexus_gen.encoder(GENERATION)
  assert (alone.modules, alone.texts) == (("visual",), False)
  assert cached.transform(data, alone) == {"friendly": True, "resize": "horizontal first"}
  assert alone.design == {"visual": found.design["visual"], "target_grid": 6}
  assert config.to_dict(CFG.form)["resample"] == "bicubic"


def test_what_cannot_be_kept():
  with pytest.raises(ValueError, match="'language' trains on pictures, of which nothing"):
    nexus_gen.encoder(CFG).rows(Data(task="edit", pictures=2), TOK)
  with pytest.raises(ValueError, match="swap_captions"):
    nexus_gen.encoder(EDITING).rows(Data(task="edit", swap_captions=0.5, **DATA), TOK)
  with pytest.raises(ValueError, match=r"config\.tokenizer: task 'edit' needs"):
    nexus_gen.encoder(EDITING).rows(Data(task="edit", **DATA), None)
