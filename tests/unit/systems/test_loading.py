"""One way from any directory to parameters: released, converted, a run; whole or in part."""

import dataclasses
from pathlib import Path

import checkpoints
import jax
import numpy as np
import pytest

from blip3o_jax import config
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.train import checkpoint
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train.run import Train

TINY = checkpoints.TINY
CFG = dataclasses.replace(released.read(TINY, "float32")[0], parts=("denoiser",))


def flat(network: Network) -> dict[str, np.ndarray]:
  return {path: np.asarray(value) for path, value in trees.flatten(network.params).items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
  assert set(one) == set(other)
  for path, value in one.items():
    assert value.dtype == other[path].dtype
    np.testing.assert_array_equal(value, other[path], err_msg=path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
  out = tmp_path_factory.mktemp("converted") / "tiny"
  importer.run(TINY, out, say=lambda _: None)
  return out


@pytest.fixture(scope="module")
def run(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The checkpoint of a run that trained the generator: each of its leaves one more than before."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  trainable = ("denoiser/.*", "slots/.*")
  train = Train(trainable=trainable, init_from=(str(converted),))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  part = train_state.partition(blip3o, CFG, mesh, trainable)
  used = loading.resolve(train.init_from)
  filled, _ = loading.fill(blip3o, CFG, used, part.trained, part.leaves)
  tx = optimizer.make(train.optimizer, 10, {p: part.axes[p] for p in part.trained})
  abstract = train_state.abstract_state(part, tx, mesh, ema=False)
  params = trees.unflatten({path: value + 1 for path, value in filled.items()})
  state = train_state.start(abstract, tx, params, mesh)
  facts = {"system": "blip3o", "train": config.to_dict(train), "model": config.to_dict(CFG)}
  record = {**facts, "sources": loading.to_record(used, workdir)}
  with checkpoint.Writer(workdir, train.checkpoint, record) as writer:
    writer.save(state)
    writer.wait()
  return workdir


def test_a_run_loads_as_what_it_exports(run, tmp_path):
  """Bit for bit, and with the settings, tokenizer and pixel decoder of what it started from."""
  exporter.run(run, tmp_path / "out", say=lambda _: None)
  mine, exported = verbs.load(run), verbs.load(tmp_path / "out")
  same(flat(mine.system), flat(exported.system))
  assert mine.decoder is not None
  assert exported.decoder is not None
  same(flat(mine.decoder), flat(exported.decoder))
  assert mine.settings == exported.settings
  assert mine.cfg == dataclasses.replace(exported.cfg, latents=mine.cfg.latents)
  before = checkpoints.tensors()["model.latent_queries"]
  np.testing.assert_array_equal(flat(mine.system)["slots/embedding"], before + 1)


def test_where_a_run_has_its_files(run, converted):
  assert loading.home_of(run, "tokenizer.json") == converted
  assert loading.home_of(TINY, "tokenizer.json") == TINY
  with pytest.raises(FileNotFoundError, match=r"no speech\.json in what this run started from"):
    loading.home_of(run, "speech.json")


def test_one_model_from_several_directories(converted):
  """The later entry wins; modules that are named alone are all that is filled."""
  cfg = dataclasses.replace(CFG, parts=("denoiser", "encoder"))
  entries = [f"{TINY}#only=backbone+encoder", f"{converted}#only=slots+denoiser"]
  whole = flat(loading.load(blip3o, cfg, entries, dtype=None))
  same(whole, flat(loading.load(blip3o, cfg, TINY, dtype=None)))
  some = flat(loading.load(blip3o, cfg, TINY, dtype=None, only=("slots",)))
  assert set(some) == {"slots/embedding"}
  with pytest.raises(ValueError, match=r"nothing fills \d+ parameters, first backbone/"):
    loading.load(blip3o, cfg, [f"{TINY}#only=encoder"], dtype=None)


@pytest.mark.parametrize("kind", ["released", "converted"])
def test_casts_and_places(kind, converted):
  directory = TINY if kind == "released" else converted
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  cfg = painter_files.read_config(TINY, feature_grid=CFG.grid)
  found = loading.load(
    painter, cfg, directory, dtype="bfloat16", keep=("autoencoder",), mesh=mesh
  ).params
  for network, dtype in (("unet", "bfloat16"), ("autoencoder", "float32")):
    for value in jax.tree.leaves(found[network]):
      assert (str(value.dtype), value.sharding.mesh) == (dtype, mesh)


@pytest.mark.parametrize("kind", ["released", "converted"])
def test_a_tower_for_contrastive_training(kind, converted):
  """Another system's folder fills what it has of this one's modules."""
  directory = TINY if kind == "released" else converted
  leaves = {
    path: jax.ShapeDtypeStruct(value.shape, value.dtype)
    for path, value in flat(
      loading.load(blip3o, dataclasses.replace(CFG, parts=("encoder",)), TINY, dtype=None)
    ).items()
    if path.startswith("encoder/")
  }
  wanted = leaves | {"logit_scale": jax.ShapeDtypeStruct((1,), np.float32)}
  used = loading.resolve([str(directory)])
  filled, left = loading.fill(contrast, None, used, wanted, wanted)
  assert set(filled) == set(leaves)
  assert set(left) == {"logit_scale"}


def test_the_encoder_of_latents_is_a_decoders_autoencoder(converted):
  """A module that directories have under another name."""
  sizes = painter_files.read_config(TINY, feature_grid=CFG.grid).autoencoder
  grid, channels = 16, sizes.latent_channels
  denoiser = dataclasses.replace(CFG.denoiser, grid=grid, in_channels=channels)
  cfg = dataclasses.replace(
    CFG, target="latents", latents=sizes, denoiser=denoiser, parts=("denoiser", "encoder")
  )
  found = [
    flat(loading.load(blip3o, cfg, directory, dtype=None, only=("encoder",)))
    for directory in (TINY, converted)
  ]
  same(*found)
  wanted = checkpoints.tensors(TINY / "diffusion-decoder" / "vae", "diffusion_pytorch_model")
  np.testing.assert_array_equal(
    found[0]["encoder/encoder/conv_in/bias"], wanted["encoder.conv_in.bias"]
  )


def test_the_config_of_a_directory(run, converted):
  assert loading.config_of(blip3o, run) == CFG
  whole = released.read(TINY, "float32")[0]
  assert loading.config_of(blip3o, TINY) == loading.config_of(blip3o, converted) == whole
  with pytest.raises(FileNotFoundError, match=r"no config\.json of a whole model"):
    loading.config_of(pixels, TINY)
