"""The released stages: `:reference` to the letter of spec 6.3 and 6.4, and what the words do."""

from pathlib import Path
import runpy

import pytest

from blip3o_jax.systems import SYSTEMS
from blip3o_jax.train import optimizer
from blip3o_jax.train import run

FOLDER = Path(__file__).parents[2] / "configs"
SIZES, STAGES = ("4b", "8b"), ("pretrain", "sft")


def parsed(name: str, arg: str = "") -> run.Run:
  values = runpy.run_path(str(FOLDER / f"blip3o_{name}.py"))["get_config"](arg)
  return run.parse(values, SYSTEMS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
  ("stage", "steps", "warm", "floor"),
  [("pretrain", 150_000, 450, 1e-5), ("sft", 10_000, 30, 0.0)],
)
def test_reference_is_the_paper_to_the_letter(size, stage, steps, warm, floor):
  found = parsed(f"{size}_{stage}", "reference")
  train, model, data = found.train, found.model, found.data
  assert (train.steps, train.batch, train.accumulate, train.ema_decay) == (steps, 512, 1, 0.0)
  o = train.optimizer
  assert (o.name, o.lr, o.lr_end, o.schedule) == ("adamw", 1e-4, floor, "cosine")
  assert (o.b1, o.b2, o.eps, o.weight_decay, o.clip) == (0.9, 0.999, 1e-8, 0.0, 1.0)
  assert o.warmup(steps) == warm
  rate = optimizer.schedule(o, steps)
  assert float(rate(0)) == 0
  assert float(rate(warm)) == pytest.approx(1e-4)
  assert float(rate(steps)) == pytest.approx(floor, abs=1e-9)
  assert train.trainable == ("slots/.*", "denoiser/.*")
  assert (train.frozen_dtype, train.checkpoint.every_steps, train.checkpoint.keep) == (
    "bfloat16",
    1000,
    1,
  )
  assert (data.buckets, model.prompt_form, data.features, data.image_size) == (
    (448,),
    "training",
    False,
    448,
  )
  assert max(data.buckets) + model.slots == 512
  assert (data.holdout, data.seed, data.squash) == (0.0, 42, False)
  assert model.parts == ("denoiser", "encoder")
  assert (model.objective, model.target, model.projector) == ("flow", "features", "identity")
  assert (model.loss.drop, model.loss.draws, model.loss.times.kind) == (0.1, 1, "uniform")
  assert (model.backbone.remat, model.denoiser.remat) == ("full", "full")
  assert model.prompt_gradient == "full"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_default_has_the_same_optimisation(size, stage):
  ours, theirs = (parsed(f"{size}_{stage}", arg) for arg in ("", "reference"))
  for name in ("steps", "batch", "optimizer", "trainable", "frozen_dtype", "ema_decay"):
    assert getattr(ours.train, name) == getattr(theirs.train, name), name
  assert ours.model.loss == theirs.model.loss
  assert ours.data.buckets == (64, 128, 160, 192, 256, 448)
  assert ours.data.features
  assert (ours.model.parts, ours.model.prompt_gradient) == (("denoiser",), "stop")
  assert (ours.train.mesh.replica, ours.train.mesh.fsdp, ours.train.mesh.tensor) == (1, 0, 1)
  assert (ours.model.backbone.remat, ours.model.denoiser.remat) == ("dots", "dots")
  small = parsed(f"{size}_{stage}", "memory=small").model
  assert (small.backbone.remat, small.denoiser.remat) == ("full", "full")
  assert ours.eval_data.split == "test"
  assert ours.eval_data.holdout == ours.data.holdout > 0


def test_words_and_settings():
  found = parsed("4b_pretrain", "data=pixels,tars=/t,qwen=/q")
  assert (found.data.path, found.eval_data.path, found.tokenizer) == ("/t", "/t", "/q")
  assert found.train.init_from == ("/q#only=backbone+encoder",)
  assert parsed("4b_pretrain", "qwen=/q").train.init_from == ("/q#only=backbone",)
  found = parsed("8b_sft", "qwen=/q,init=/run")
  assert found.train.init_from == ("/q#only=backbone", "/run")
  assert parsed("8b_sft", "init=/released,tokenizer=/t").tokenizer == "/t"
  with pytest.raises(ValueError, match="init=: instruction tuning starts from a trained generator"):
    parsed("4b_sft", "qwen=/q,tars=/t")
  for kind in ("none", "int8", "int8_backward"):
    assert parsed("8b_pretrain", f"quantize={kind}").model.backbone.quantize == kind
  assert parsed("8b_pretrain").model.backbone.quantize == "none"
  debug = parsed("8b_pretrain", "debug").train
  assert (debug.steps, debug.batch, debug.log.every) == (20, 32, 1)


def test_words_that_are_wrong():
  for arg, text in {
    "data=video": "expected cached or pixels",
    "memory=tiny": "expected large or small",
    "quantize=fp8": "'fp8': expected none, int8 or int8_backward",
    "init=/x": "pretraining starts from qwen=",
    "referense": "unknown, expected one of reference",
  }.items():
    with pytest.raises(ValueError, match=text):
      parsed("4b_pretrain", arg)


def test_each_docstring_has_its_command():
  for path in sorted(FOLDER.glob("blip3o_*.py")):
    text = path.read_text()
    assert f"blip3o train --config=configs/{path.name}" in text, path.name
