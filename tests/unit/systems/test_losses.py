"""What each system's loss reaches, what its check refuses, and the parts they share."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import trees
from blip3o_jax.models import autoencoder
from blip3o_jax.models import clip_text
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts import slots

Fill = Callable[..., Any]
TOWER = eva_vit.Config(image_size=16, patch_size=4, dim=16, depth=1, heads=2, mlp_dim=16)
SPACE = features.Config(TOWER, pool=2, whiten=6)
CFG = blip3o.Config(
  backbone=decoder_lm.Config(
    vocab_size=40,
    dim=16,
    depth=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_dim=16,
    mrope_section=(1, 1, 2),
  ),
  visual=qwen_vision.Config(
    dim=16, depth=1, heads=2, mlp_dim=16, out_dim=16, patch_size=4, window_size=16, full_layers=(0,)
  ),
  denoiser=next_dit.Config(
    in_channels=6, grid=2, condition_dim=16, dim=16, depth=1, heads=2, kv_heads=2, multiple_of=8
  ),
  features=SPACE,
  latents=autoencoder.Config(),
  slots=4,
  image_token=39,
  parts=("denoiser", "encoder"),
)


def _gradients(system: Any, module: Any, batch: Any, seed: int = 0) -> tuple[Any, dict[str, float]]:
  """(value of the loss, {path: largest gradient})."""
  graphdef, state = nnx.split(module)

  def loss(params: Any) -> Any:
    net = nnx.merge(graphdef, params)
    ready = net.prepare(batch)
    return net.loss(ready, jax.random.key(seed), net.weights(ready))[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(nnx.to_pure_dict(state))
  return value, {p: float(jnp.abs(g).max()) for p, g in trees.flatten(grads).items()}


def _prompts(rows: int = 3, length: int = 5) -> dict[str, Any]:
  tokens = np.random.default_rng(1).integers(0, 38, (rows, length)).astype(np.int32)
  segments = np.ones((rows, length), np.int32)
  segments[0, :2] = 0
  return {"tokens": tokens, "segments": segments}


def _images(rows: int = 3) -> np.ndarray:
  return np.random.default_rng(2).standard_normal((rows, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("objective", ["flow", "mse"])
@pytest.mark.parametrize("projector", ["identity", "mlp"])
def test_generation_loss_reaches_slots_and_denoiser_alone(objective, projector, fill: Fill):
  cfg = dataclasses.replace(CFG, objective=objective, projector=projector)
  module = fill(lambda: blip3o.build(cfg, nnx.Rngs(0)))
  value, found = _gradients(blip3o, module, _prompts() | {"images": _images()})
  assert np.isfinite(value)
  assert all(np.isfinite(g) for g in found.values())
  assert found["slots/embedding"] > 0
  made = "denoiser/" if objective == "flow" else "regressor/"
  assert any(g > 0 for p, g in found.items() if p.startswith(made))
  if projector == "mlp":
    assert all(g > 0 for p, g in found.items() if p.startswith("projector/"))
  assert not any(g for p, g in found.items() if p.startswith("encoder/"))
  embedding = "backbone/embed_tokens/embedding"  # "stop": nothing of the prompt
  assert found[embedding] == 0
  full = dataclasses.replace(cfg, prompt_gradient="full")
  module = fill(lambda: blip3o.build(full, nnx.Rngs(0)))
  same, found = _gradients(blip3o, module, _prompts() | {"images": _images()})
  np.testing.assert_allclose(same, value, rtol=1e-5)
  assert found[embedding] > 0


def _shown() -> dict[str, Any]:
  """Two rows: one shows pictures of 2 x 4 and 2 x 2 patches, with an absent one, one none."""
  grids, n = [(2, 4), (2, 2)], 8
  made = qwen_vision.layout(grids, n, CFG.visual)
  layout = {f"patch_{f.name}": getattr(made, f.name) for f in dataclasses.fields(made)}
  absent = {name: np.concatenate([v, np.zeros_like(v[:1])]) for name, v in layout.items()}
  out = {name: np.stack([v, np.zeros_like(v)]) for name, v in absent.items()}
  rng = np.random.default_rng(3)
  out["patches"] = rng.integers(0, 256, (2, 3, n, CFG.visual.patch_dim)).astype(np.uint8)
  tokens = np.array([[1, 39, 39, 2, 39, 3], [0, 4, 5, 6, 7, 8]], np.int32)
  segments = np.array([[1] * 6, [0] + [1] * 5], np.int32)
  return out | {"tokens": tokens, "segments": segments}


def test_an_edit_reaches_slots_and_generator_alone_and_sees_its_own_pictures(fill: Fill):
  cfg = dataclasses.replace(CFG, parts=("visual", "denoiser"), objective="mse")
  module = fill(lambda: blip3o.build(cfg, nnx.Rngs(0)))
  batch = _shown() | {"features": np.ones((2, 2, 2, 6), np.float16)}
  value, found = _gradients(blip3o, module, batch)
  assert np.isfinite(value)
  assert found["slots/embedding"] > 0 < found["regressor/kernel"]
  assert not any(g for p, g in found.items() if p.startswith(("visual/", "backbone/embed_tokens/")))

  embed = jax.jit(module.embed)
  x = embed(batch["tokens"], *places.shown(batch))
  alone = {name: v[:1, :2] for name, v in batch.items() if name.startswith("patch")}
  patches, layout = places.shown({name: v[0] for name, v in alone.items()})
  flat = embed(batch["tokens"][:1], patches, layout)  # as inference hands them over
  np.testing.assert_allclose(x[0], flat[0], rtol=1e-5, atol=1e-5)
  words = module.embed(batch["tokens"])
  np.testing.assert_array_equal(x[1], words[1])
  np.testing.assert_array_equal(x[0, [0, 3, 5]], words[0, [0, 3, 5]])
  # In the other order of rows each still has its own.
  other = {name: v[::-1] for name, v in batch.items()}
  turned = embed(other["tokens"], *places.shown(other))
  np.testing.assert_allclose(turned, x[::-1], rtol=1e-5, atol=1e-5)
  blind = fill(lambda: blip3o.build(dataclasses.replace(cfg, parts=("denoiser",)), nnx.Rngs(0)))
  with pytest.raises(ValueError, match=r"'visual', absent from config\.parts"):
    blind.loss(batch, jax.random.key(0), module.weights(batch))


def test_dropped_conditions_and_draws(fill: Fill):
  every = dataclasses.replace(CFG, loss=blip3o.Loss(drop=1.0, draws=3))
  module = fill(lambda: blip3o.build(every, nnx.Rngs(0)))
  value, found = _gradients(blip3o, module, _prompts() | {"images": _images()})
  assert np.isfinite(value)
  assert found["slots/embedding"] == 0


def test_contrast_reaches_both_towers(fill: Fill):
  text = clip_text.Config(vocab_size=40, length=8, dim=8, depth=1, heads=2, mlp_dim=8)
  cfg = contrast.Config(features.Config(TOWER, pool=2), text, dim=4)
  module = fill(lambda: contrast.build(cfg, nnx.Rngs(0)))
  batch = _prompts() | {"images": _images()}
  value, found = _gradients(contrast, module, batch)
  assert np.isfinite(value)
  for part in (
    "encoder/",
    "text/",
    "image_proj/",
    "text_proj/",
    "narrow/",
    "widen/",
    "pixels/",
    "logit_scale",
  ):
    assert any(g > 0 for p, g in found.items() if p.startswith(part)), part
  weights = module.weights(batch)
  _, metrics = module.loss(batch, jax.random.key(0), weights)
  assert 0 <= float(metrics["retrieval"]) <= 1
  # The noise is in the narrow features alone: another key changes the pixels' error, nothing else.
  _, other = module.loss(batch, jax.random.key(1), weights)
  assert other["pixel_error"] != metrics["pixel_error"]
  assert other["contrast_loss"] == metrics["contrast_loss"]


@pytest.mark.parametrize(
  ("change", "trained", "message"),
  [
    ({}, ["slots/embedding", "backbone/norm/scale"], "prompt_gradient: 'stop' gives no gradient"),
    ({"prompt_gradient": "full"}, ["encoder/whiten/mean"], "the encoder makes the targets"),
  ],
)
def test_check_refuses(change, trained, message):
  with pytest.raises(ValueError, match=message):
    blip3o.check(dataclasses.replace(CFG, **change), trained)
  blip3o.check(dataclasses.replace(CFG, **change), ["slots/embedding", "denoiser/norm_out"])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"slots": 5, "objective": "mse"}, "one slot a cell: 5"),
    ({"loss": blip3o.Loss(text=1.0)}, "loss.text needs the part 'head'"),
    ({"features": features.Config(TOWER, pool=2)}, "denoiser takes 2 x 2 x 6, features are 2 x 2"),
  ],
)
def test_configs_that_contradict_themselves(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)


def test_absent_parts_are_named(fill: Fill):
  module = fill(lambda: blip3o.build(dataclasses.replace(CFG, parts=("head",)), nnx.Rngs(0)))
  with pytest.raises(ValueError, match=r"'denoiser', absent from config\.parts"):
    module.condition(**_prompts())
  with pytest.raises(ValueError, match="'encoder', absent"):
    module.targets(_images())


def test_whitening_is_white():
  rng = np.random.default_rng(0)
  x = (rng.standard_normal((200, 2, 2, 5)) @ rng.standard_normal((5, 5))).astype(np.float32)
  x += rng.standard_normal((2, 2, 5)).astype(np.float32)
  mean, kernel, share = features.fit_whitening(x, 3)
  white = ((x - mean) @ kernel).reshape(-1, 3)
  np.testing.assert_allclose(white.T @ white / len(white), np.eye(3), atol=1e-3)
  assert 0.5 < share <= 1
  # What is particular to a cell stays in its features: they are all that tells where it lies.
  assert np.abs(white.reshape(*x.shape[:3], 3).mean(0)).max() > 0.1
  with pytest.raises(ValueError, match="whiten 6: there are only 5 channels"):
    features.fit_whitening(x, 6)
  narrow = rng.standard_normal((5, 4)).astype(np.float32)
  mean, kernel, share = features.fit_whitening(x, 4, narrow)
  white = ((x - mean) @ kernel).reshape(-1, 4)
  np.testing.assert_allclose(white.T @ white / len(white), np.eye(4), atol=1e-3)
  assert share == pytest.approx(1)
  with pytest.raises(ValueError, match="whiten 5: there are only 4 channels"):
    features.fit_whitening(x, 5, narrow)
  with pytest.raises(ValueError, match="pool 3 does not divide"):
    features.Config(TOWER, pool=3)


def test_whitening_by_what_factors_leave():
  """What the factors do not explain is white, so a rare but known difference outweighs the rest."""
  rng = np.random.default_rng(0)
  which = rng.integers(3, size=(400, 2, 2))  # the third class shows nothing
  factors = np.eye(3, dtype=bool)[which][..., :2]
  mixing = rng.standard_normal((4, 4))
  known = np.array([[0, 0, 0, 0.3], [0, 0, 0, -0.3], [0, 0, 0, 0]])[which]
  noise = np.array([3, 2, 1, 0.2]) * rng.standard_normal((400, 2, 2, 4))
  x = ((known + noise * (which < 2)[..., None]) @ mixing).astype(np.float32)
  mean, kernel, share = features.fit_whitening(x, 4, factors=factors)
  assert share == pytest.approx(1)
  white = ((x - mean) @ kernel).reshape(-1, 4)
  assert np.var(white, 0).mean() == pytest.approx(1, rel=1e-3)
  kinds = which.reshape(-1)
  left = np.concatenate([white[kinds == k] - white[kinds == k].mean(0) for k in (0, 1)])
  spread = np.linalg.eigvalsh(left.T @ left / len(left))
  np.testing.assert_allclose(spread, spread.mean(), rtol=0.02)
  between = white[kinds == 0].mean(0) - white[kinds == 1].mean(0)
  assert np.linalg.norm(between) / np.sqrt(spread.mean()) == pytest.approx(0.6 / 0.2, rel=0.1)


def test_slots_do_not_see_padding(fill: Fill):
  """What stands at padding changes nothing, and both ways of reading agree."""
  language = fill(lambda: decoder_lm.DecoderLM(CFG.backbone, rngs=nnx.Rngs(0)))
  table = fill(lambda: slots.Slots(4, 16, rngs=nnx.Rngs(0)))
  batch = _prompts()
  other = batch | {"tokens": np.where(batch["segments"] == 0, 7, batch["tokens"])}
  read = {
    (name, kind): slots.read(
      language,
      language.embed(b["tokens"]),
      decoder_lm.plain_positions(b["segments"]),
      b["segments"],
      table(3, jnp.float32),
      prompt_gradient=kind,
    )
    for name, b in (("one", batch), ("other", other))
    for kind in ("stop", "full")
  }
  first = read["one", "stop"]
  assert first.shape == (3, 4, 16)
  for value in read.values():
    np.testing.assert_allclose(value, first, rtol=1e-4, atol=1e-5)
