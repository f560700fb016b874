"""The stages of Nexus-Gen: `:reference` to the letter of its spec 9, and what the words do."""

from pathlib import Path
import runpy

import pytest

from blip3o_jax import recipes
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.train import optimizer
from blip3o_jax.train import run

FOLDER = Path(__file__).parents[2] / "configs"
STAGES: dict[str, model.Stage] = {
  "ar": "language",
  "generation": "generation",
  "editing": "editing",
}
DECODERS = ("generation", "editing")


def parsed(name: str, arg: str = "") -> run.Run:
  values = runpy.run_path(str(FOLDER / f"nexus_gen_{name}_train.py"))["get_config"](arg)
  return run.parse(values, SYSTEMS)


def test_reference_of_the_language_model():
  found = parsed("ar", "reference")
  train, data, cfg = found.train, found.data, found.model
  o = train.optimizer
  assert (o.name, o.lr, o.lr_end, o.schedule, o.warmup_ratio) == ("adamw", 1e-5, 0, "cosine", 0.05)
  assert train.batch == 128
  assert train.steps * 128 == pytest.approx(2 * 26.3e6, rel=1e-5)
  assert train.trainable == ("backbone/.*", "vision_head/.*", "slots/.*")
  assert (cfg.loss.text, cfg.loss.image, cfg.loss.drop) == (3.0, 3.0, 0.0)
  assert (cfg.form.max_pixels, cfg.side(cfg.target_grid), cfg.slots) == (262_640, 252, 81)
  assert (data.task, data.buckets, data.friendly) == ("messages", (4096,), False)
  assert data.reading.whole
  assert cfg.parts == ("visual", "language")


@pytest.mark.parametrize("name", DECODERS)
def test_reference_of_a_decoder(name):
  found = parsed(name, "reference")
  train, data, cfg = found.train, found.data, found.model
  o = train.optimizer
  assert (o.lr, o.schedule, o.warmup(train.steps), o.clip) == (1e-5, "constant", 100, 0.0)
  assert (o.b1, o.b2, o.weight_decay) == (0.9, 0.999, 0.01)
  rate = optimizer.schedule(o, train.steps)
  assert float(rate(100)) == float(rate(train.steps)) == pytest.approx(1e-5)
  assert (train.batch, train.steps * 128) == (128, 1000 * 64_000)
  assert train.trainable == (f"{model.TRAINS[STAGES[name]]}/.*",)
  assert (cfg.loss.times, cfg.loss.drop, cfg.guidance) == ("batch", 0.0, 3.5)
  assert (data.image_size, data.features, data.friendly) == (512, True, False)
  assert (cfg.side(cfg.reference_grid), cfg.form.resample) == (504, "bicubic")
  assert cfg.parts == (model.TRAINS[STAGES[name]], "autoencoder", "constants")


@pytest.mark.parametrize("name", STAGES)
def test_the_default_has_the_same_optimisation(name):
  ours, theirs = parsed(name), parsed(name, "reference")
  for field in ("steps", "batch", "optimizer", "trainable", "frozen_dtype", "ema_decay"):
    assert getattr(ours.train, field) == getattr(theirs.train, field), field
  assert ours.model.stage == STAGES[name]
  assert (ours.model.loss.text, ours.model.loss.image) == (3.0, 3.0)
  assert ours.eval_data.split == "test"
  assert ours.eval_data.holdout == ours.data.holdout > 0
  assert (ours.model.flux.remat, theirs.model.flux.remat) == ("dots", "full")
  assert parsed(name, "memory=small").model.backbone.remat == "full"
  debug = parsed(name, "debug").train
  assert (debug.steps, debug.batch, debug.log.every) == (20, 32, 1)
  assert recipes.RELEASED[f"nexus_gen_{name}_train"]("debug").steps == 20


def test_words_and_settings():
  found = parsed("ar", "model=/m,records=/r,images=/i,language=zh")
  assert (found.data.path, found.eval_data.path, found.tokenizer) == ("/r", "/r", "/m")
  assert (found.data.reading.images, found.model.form.language) == ("/i", "zh")
  assert found.train.init_from == ("/m",)
  found = parsed("editing", "model=/m,flux=/f,data=pixels,tokenizer=/t")
  assert (found.train.init_from, found.tokenizer) == (("/m", "/f"), "/t")
  assert found.model.parts == ("visual", "language", "editor", "autoencoder", "constants")
  assert not found.data.features
  live = parsed("generation", "data=pixels").model.parts
  assert live == ("visual", "generator", "autoencoder", "constants")


@pytest.mark.parametrize(
  ("name", "arg", "text"),
  [
    ("editing", "data=video", "expected cached or pixels"),
    ("ar", "memory=tiny", "expected large or small"),
    ("ar", "language=de", "expected en or zh"),
    ("ar", "data=pixels", "data=: of the decoders"),
    ("ar", "flux=/f", "flux=: of the decoders"),
    ("generation", "referense", "unknown, expected one of reference"),
  ],
)
def test_words_that_are_wrong(name, arg, text):
  with pytest.raises(ValueError, match=text):
    parsed(name, arg)


def test_each_docstring_has_its_command():
  for path in sorted(FOLDER.glob("nexus_gen_*.py")):
    assert f"blip3o train --config=configs/{path.name}" in path.read_text(), path.name
