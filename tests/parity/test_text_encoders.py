"""FLUX's two text encoders against transformers, random and tiny, through our tables."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from blip3o_jax.models import t5_encoder
from blip3o_jax.systems.nexus_gen import constants

pytestmark = pytest.mark.torch
LENGTH = 150  # more than the distance from which all keys share a bucket
BAR = 3e-6


def randomise(model):
  """Every parameter away from neutral."""
  import torch

  generator = torch.Generator().manual_seed(3)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.randn(p.shape, generator=generator)
      p.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise)
  return model.eval()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  """(folder, CLIP, T5): the encoders as transformers writes them, and as it runs them."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  home = tmp_path_factory.mktemp("encoders")
  clip = transformers.CLIPTextModel(
    transformers.CLIPTextConfig(
      vocab_size=60,
      hidden_size=24,
      intermediate_size=40,
      num_hidden_layers=2,
      num_attention_heads=4,
      max_position_embeddings=77,
      bos_token_id=58,
      eos_token_id=59,
      attn_implementation="eager",
    )
  )
  t5 = transformers.T5EncoderModel(
    transformers.T5Config(
      vocab_size=50,
      d_model=32,
      d_kv=8,
      num_heads=3,
      d_ff=40,
      num_layers=2,
      relative_attention_num_buckets=16,
      relative_attention_max_distance=60,
      feed_forward_proj="gated-gelu",
    )
  )
  randomise(clip).save_pretrained(home / constants.CLIP)
  randomise(t5).save_pretrained(home / constants.T5)
  torch.set_num_threads(2)
  return home, clip, t5


def test_pooled_of_the_empty_text(encoders, check):
  import torch

  home, clip, _ = encoders
  ids = torch.tensor([[58] + [59] * 76])  # padded with the token that ends a text
  with torch.no_grad():
    theirs = clip(ids).pooler_output[0].numpy()
  check("clip: pooled of nothing", constants.pooled(home / constants.CLIP), BAR, theirs)


def test_context_of_the_empty_text(encoders, check):
  import torch

  home, _, t5 = encoders
  with torch.no_grad():
    theirs = t5(torch.tensor([[1] + [0] * (LENGTH - 1)])).last_hidden_state[0].numpy()
  check("t5: context of nothing", constants.context(home / constants.T5, LENGTH), BAR, theirs)
  text = np.random.default_rng(0).integers(0, 50, (1, LENGTH))
  with torch.no_grad():
    theirs = t5(torch.from_numpy(text)).last_hidden_state.numpy()
  cfg = constants.t5_config(home / constants.T5)
  assert (cfg.buckets, cfg.max_distance, cfg.head_dim) == (16, 60, 8)
  ours = constants.t5(home / constants.T5)(jnp.asarray(text))
  check("t5: a text", ours, BAR, theirs)


@pytest.mark.parametrize(("count", "distance"), [(32, 128), (16, 60)])
def test_buckets_are_those_of_transformers(count, distance):
  torch = pytest.importorskip("torch")
  from transformers.models.t5 import modeling_t5

  cfg = t5_encoder.Config(8, 8, 1, 1, 8, 8, buckets=count, max_distance=distance)
  at = torch.arange(512)
  theirs = modeling_t5.T5Attention._relative_position_bucket(
    at[None] - at[:, None], bidirectional=True, num_buckets=count, max_distance=distance
  )
  np.testing.assert_array_equal(t5_encoder.buckets(512, cfg), theirs.numpy())


def test_the_file(encoders, tmp_path):
  home, *_ = encoders
  constants.write(home / constants.CLIP, home / constants.T5, tmp_path / "null.safetensors", 5)
  found = load_file(tmp_path / "null.safetensors")
  assert {name: v.shape for name, v in found.items()} == {"pooled": (24,), "context": (5, 32)}
  np.testing.assert_array_equal(found["context"], constants.context(home / constants.T5, 5))


@pytest.mark.parametrize(
  ("folder", "field", "value"),
  [
    (constants.CLIP, "hidden_act", "gelu_new"),
    (constants.T5, "feed_forward_proj", "relu"),
    (constants.T5, "feed_forward_proj", None),
    (constants.T5, "d_model", 40),
  ],
)
def test_a_field_that_is_not_built_is_named(encoders, tmp_path, folder, field, value):
  home, *_ = encoders
  for file in (home / folder).iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
  run = constants.pooled if folder == constants.CLIP else constants.context
  with pytest.raises(ValueError, match="shared.weight" if field == "d_model" else field):
    run(tmp_path)
