"""The tables of the Qwen networks account for every key of the full-size checkpoints."""

import dataclasses
import json
from pathlib import Path

from flax import nnx
import numpy as np
import pytest

from blip3o_jax import trees
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import qwen_vision
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm as lm_table
from blip3o_jax.weights.rows import qwen_vision as vision_table

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"
ELSEWHERE = (r"model\.dit\..*", r"model\.gen_vision_tower\..*", r"model\.latent_queries")
COUNTS = {"3b": 3_754_074_112, "7b": 8_289_328_128}  # spec 0
VISION_COUNTS = {"3b": 668_684_288, "7b": 676_550_144}  # spec 1.5
ORIGINAL_VOCAB = {"3b": 151936, "7b": 152064}


def shapes(module: type[nnx.Module], cfg: object) -> dict[str, tuple[int, ...]]:
  model = nnx.eval_shape(lambda: module(cfg, rngs=nnx.Rngs(0)))  # type: ignore[call-arg]
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  return {path: tuple(p.shape) for path, p in flat.items()}


def size(params: dict[str, tuple[int, ...]]) -> int:
  return sum(int(np.prod(s, dtype=np.int64)) for s in params.values())


def manifest(name: str) -> dict[str, tuple[int, ...]]:
  return {k: tuple(v) for k, v in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}


def whole(cfg: decoder_lm.Config, names: dict[str, tuple[int, ...]]) -> list[table.Row]:
  rows = table.prefixed(lm_table.rows(), lm_table.prefix(names), "lm/")
  rows += table.prefixed(vision_table.rows(), vision_table.prefix(names), "vision/")
  return rows if cfg.tie_embeddings else rows + table.prefixed(lm_table.head_rows(), "", "lm/")


def networks(cfg: decoder_lm.Config, variant: str) -> dict[str, tuple[int, ...]]:
  vision = shapes(qwen_vision.QwenVision, qwen_vision.VARIANTS[variant])
  lm = shapes(decoder_lm.DecoderLM, cfg)
  return {f"lm/{p}": s for p, s in lm.items()} | {f"vision/{p}": s for p, s in vision.items()}


@pytest.mark.parametrize("kind", ["3b", "7b"])
def test_parameter_counts(kind):
  variant = f"qwen2_5_vl_{kind}"
  assert size(networks(decoder_lm.VARIANTS[variant], variant)) == COUNTS[kind]
  assert size(shapes(qwen_vision.QwenVision, qwen_vision.VARIANTS[variant])) == VISION_COUNTS[kind]


@pytest.mark.parametrize("kind", ["3b", "7b"])
@pytest.mark.parametrize("source", ["blip3o_qwen", "qwen2_5_vl"])
@pytest.mark.parametrize("renamed", [False, True], ids=["released", "transformers>=4.52"])
def test_every_key_of_the_manifest(kind, source, renamed):
  variant, names = f"qwen2_5_vl_{kind}", manifest(f"{source}_{kind}")
  cfg = decoder_lm.VARIANTS[variant]
  if source == "qwen2_5_vl":
    cfg = dataclasses.replace(cfg, vocab_size=ORIGINAL_VOCAB[kind])
  if renamed:
    names = {rename(k): v for k, v in names.items()}
  params = networks(cfg, variant)
  sources = table.plan(whole(cfg, names), names, params, ignore=ELSEWHERE)
  assert set(sources) == set(params)


def rename(key: str) -> str:
  for old, new in (("visual.", "model.visual."), ("model.", "model.language_model.")):
    if key.startswith(old) and not key.startswith(("model.dit", "model.gen_", "model.latent")):
      return new + key.removeprefix(old)
  return key


def test_a_wrong_vocabulary_and_an_odd_key_are_faults():
  cfg, names = decoder_lm.VARIANTS["qwen2_5_vl_7b"], manifest("qwen2_5_vl_7b")
  names |= {"visual.blocks.32.norm1.weight": (1280,), "model.norm.bias": (3584,)}
  with pytest.raises(table.WeightsError) as error:
    table.plan(whole(cfg, names), names, networks(cfg, "qwen2_5_vl_7b"))
  text = "\n".join(error.value.faults)
  assert len(error.value.faults) == 4
  assert "expected (151668, 3584) for lm/embed_tokens/embedding" in text
  assert "expected (151668, 3584) for lm/lm_head/kernel" in text
  assert "visual.blocks.32.norm1.weight" in text
  assert "model.norm.bias" in text


@pytest.mark.parametrize("find", [lm_table.prefix, vision_table.prefix])
def test_no_prefix_fits(find):
  with pytest.raises(ValueError, match="under any of"):
    find(["lm_head.weight"])


def test_export_is_the_inverse():
  cfg = qwen_vision.Config(
    dim=8, depth=2, heads=1, mlp_dim=6, out_dim=4, patch_size=2, window_size=8, full_layers=(1,)
  )
  rng = np.random.default_rng(0)
  params = {p: rng.normal(size=s) for p, s in shapes(qwen_vision.QwenVision, cfg).items()}
  tensors = dict(table.export(vision_table.rows(), params))
  assert tensors["patch_embed.proj.weight"].shape == (8, 3, 2, 2, 2)
  assert tensors["blocks.1.attn.qkv.weight"].shape == (24, 8)
  found = {k: v.shape for k, v in tensors.items()}
  sources = table.plan(vision_table.rows(), found, {p: v.shape for p, v in params.items()})
  for path, value in params.items():
    index = (slice(None),) * value.ndim
    read = table.read_shard(sources[path], lambda n, i: tensors[n][i], index, value.shape)
    np.testing.assert_array_equal(read, value)
