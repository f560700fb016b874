"""Greedy answers of a random language model of 25 million parameters: the chat of sampling.py.

Ours is what a chat runs, one prefill and a compiled loop; theirs transformers' Qwen2 `generate`,
eager, with the cache that it is quicker with here.
"""

from collections.abc import Callable
import time
from typing import Any

from flax import nnx
import jax
import numpy as np
import torch
import transformers

from blip3o_jax import trees
from blip3o_jax.models import decoder_lm
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts.network import Network

CONFIG = decoder_lm.Config(
  vocab_size=8192,
  dim=384,
  depth=12,
  heads=6,
  kv_heads=2,
  head_dim=64,
  mlp_dim=1024,
  mrope_section=(8, 12, 12),
  init_std=0.05,
)
PROMPT, LENGTH = 32, 64
CACHES = ("dynamic", "static")


@jax.jit
def _begin(network: Network, prompt: Any, rules: decoding.Rules) -> decoding.Answers:
  language = network.module()
  state = decoding.begin(language, language.embed(prompt["tokens"]), prompt, LENGTH)
  return decoding.first(language, state, rules)


@jax.jit
def _more(network: Network, answers: decoding.Answers, rules: decoding.Rules) -> decoding.Answers:
  return decoding.more(network.module(), answers, rules)


def ours(network: Network, ids: np.ndarray) -> Callable[[], np.ndarray]:
  """The ids (1, LENGTH) of an answer."""
  prompt = {
    "tokens": ids,
    "segments": np.ones_like(ids),
    "positions": np.arange(PROMPT, dtype=np.int32)[None],
    "deltas": np.zeros((1, 1), np.int32),
  }
  # No id ends an answer: the one that would is not in the vocabulary.
  rules = decoding.rules(1, LENGTH, CONFIG.vocab_size, [CONFIG.vocab_size])

  def answer() -> np.ndarray:
    return np.asarray(_more(network, _begin(network, prompt, rules), rules).ids)

  return answer


def theirs(network: Network, ids: np.ndarray) -> Callable[[], np.ndarray]:
  """The same of transformers."""
  cfg = CONFIG
  sizes: dict[str, Any] = dict(
    vocab_size=cfg.vocab_size,
    hidden_size=cfg.dim,
    num_hidden_layers=cfg.depth,
    num_attention_heads=cfg.heads,
    num_key_value_heads=cfg.kv_heads,
    intermediate_size=cfg.mlp_dim,
    rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
    rms_norm_eps=cfg.norm_eps,
    tie_word_embeddings=cfg.tie_embeddings,
    attn_implementation="sdpa",
  )
  model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).eval()
  model.load_state_dict(state(network))
  given = torch.from_numpy(ids.astype(np.int64))
  model.generation_config.pad_token_id = 0
  how: dict[str, Any] = dict(do_sample=False, max_new_tokens=LENGTH, min_new_tokens=LENGTH)

  def form(cache: str) -> Callable[[], np.ndarray]:
    kind = {} if cache == "dynamic" else {"cache_implementation": cache, "disable_compile": True}

    @torch.inference_mode()
    def answer() -> np.ndarray:
      out = model.generate(given, attention_mask=torch.ones_like(given), **how, **kind)
      return out[:, PROMPT:].numpy()

    return answer

  forms = {cache: form(cache) for cache in CACHES}
  return min(forms.values(), key=_least)


def _least(answer: Callable[[], np.ndarray]) -> float:
  """Seconds of the quickest of a few runs."""
  times = []
  for _ in range(4):
    began = time.perf_counter()
    answer()
    times.append(time.perf_counter() - began)
  return min(times)


def state(network: Network) -> dict[str, torch.Tensor]:
  """The parameters under transformers' names, one layer at a time."""
  out: dict[str, torch.Tensor] = {}
  for path, value in trees.flatten(network.params).items():
    array, parts = np.asarray(value), path.split("/")
    kind = "bias" if parts[-1] == "bias" else "weight"
    array = array.swapaxes(-1, -2) if parts[-1] == "kernel" else array
    name = f"{'.'.join(parts[:-1])}.{kind}"
    if parts[0] == "layers":
      rest = name.removeprefix("layers.")
      out |= {f"model.layers.{i}.{rest}": torch.tensor(each) for i, each in enumerate(array)}
    else:
      out[name if parts[0] == "lm_head" else f"model.{name}"] = torch.tensor(array)
  return out


def pair() -> dict[str, Callable[[], np.ndarray]]:
  """Both sides."""
  network = Network.of(decoder_lm.DecoderLM(CONFIG, rngs=nnx.Rngs(0)))
  ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, PROMPT)).astype(np.int32)
  return {"ours": ours(cores.apart(network), ids), "theirs": theirs(network, ids)}


def check(name: str, found: np.ndarray, wanted: np.ndarray) -> float:
  """0; raises AssertionError unless every id is the same."""
  assert (found == wanted).all(), f"{name}: {found} is not {wanted}"
  return 0.0
