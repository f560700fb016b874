"""The Qwen2.5-VL networks against the recorded miniature and against transformers.

The weights go through the released names and our table, so layer and table are proved together.
"""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_model
import tables

from blip3o_jax import trees
from blip3o_jax.data.text import mrope
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import qwen_vision
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm as lm_table
from blip3o_jax.weights.rows import qwen_vision as vision_table
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
BAR = 3e-6
IGNORE = (r"model\.dit\..*", r"model\.gen_vision_tower\..*", r"model\.latent_queries")


class Qwen(nnx.Module):
  """Both networks, as a system holds them."""

  def __init__(self, lm: decoder_lm.Config, vision: qwen_vision.Config, *, rngs: nnx.Rngs):
    self.lm = decoder_lm.DecoderLM(lm, rngs=rngs)
    self.vision = qwen_vision.QwenVision(vision, rngs=rngs)


def configs(hf: dict[str, Any], **changes: Any) -> tuple[decoder_lm.Config, qwen_vision.Config]:
  v = hf["vision_config"]
  lm = decoder_lm.Config(
    vocab_size=hf["vocab_size"],
    dim=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    heads=hf["num_attention_heads"],
    kv_heads=hf["num_key_value_heads"],
    head_dim=hf["hidden_size"] // hf["num_attention_heads"],
    mlp_dim=hf["intermediate_size"],
    rope_theta=hf["rope_theta"],
    norm_eps=hf["rms_norm_eps"],
    mrope_section=tuple(hf["rope_scaling"]["mrope_section"]),
    tie_embeddings=hf["tie_word_embeddings"],
    **changes,
  )
  vision = qwen_vision.Config(
    dim=v["hidden_size"],
    depth=v["depth"],
    heads=v["num_heads"],
    mlp_dim=v["intermediate_size"],
    out_dim=v["out_hidden_size"],
    window_size=v["window_size"],
    full_layers=tuple(v["fullatt_block_indexes"]),
    **changes,
  )
  return lm, vision


def load(
  lm: decoder_lm.Config,
  vision: qwen_vision.Config,
  tensors: dict[str, tuple[int, ...]],
  read: table.Read,
) -> Qwen:
  """The networks with weights out of named PyTorch tensors, every one accounted for."""
  model = nnx.eval_shape(lambda: Qwen(lm, vision, rngs=nnx.Rngs(0)))
  graph, state = nnx.split(model)
  params = trees.flatten(nnx.to_pure_dict(state))
  rows = table.prefixed(lm_table.rows(), lm_table.prefix(tensors), "lm/")
  rows += table.prefixed(vision_table.rows(), vision_table.prefix(tensors), "vision/")
  rows += [] if lm.tie_embeddings else table.prefixed(lm_table.head_rows(), "", "lm/")
  ignore = (*IGNORE, r"lm_head\.weight") if lm.tie_embeddings else IGNORE
  shapes = {path: p.shape for path, p in params.items()}
  sources = table.plan(rows, tensors, shapes, ignore=ignore)
  return nnx.merge(graph, trees.unflatten(tables.filled(sources, read, params)))


def load_tiny(read: Callable[..., np.ndarray] | None = None, **changes: Any) -> Qwen:
  hf = json.loads((TINY / "config.json").read_text())
  tensors = Tensors(TINY)
  return load(*configs(hf, **changes), dict(tensors), read or tensors.read)


@pytest.fixture(scope="module")
def model() -> Qwen:
  return load_tiny()


@jax.jit
def see(model: Qwen, patches: jax.Array, layout: qwen_vision.Layout) -> jax.Array:
  return model.vision(patches, layout)


@jax.jit
def inputs(model: Qwen, tokens: jax.Array, images: jax.Array, index: jax.Array) -> jax.Array:
  rows = images.reshape(-1, images.shape[-1])[index]
  return jnp.where((index >= 0)[..., None], rows, model.lm.embed(tokens))


@jax.jit
def plain(
  model: Qwen, x: jax.Array, positions: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
  hidden = model.lm(x, positions, segments)
  return hidden, model.lm.logits(hidden)


def read_images(model: Qwen, pixels: np.ndarray, grids: list[tuple[int, int]], n: int) -> jax.Array:
  """The tower over images padded to n patches: float[I, n / 4, D]."""
  patches = np.full((len(grids), n, pixels.shape[-1]), 7.0, np.float32)  # padding is not zero
  start = 0
  for i, (h, w) in enumerate(grids):
    patches[i, : h * w] = pixels[start : start + h * w]
    start += h * w
  return see(model, patches, qwen_vision.layout(grids, n, model.vision.cfg))


def image_index(
  tokens: np.ndarray, grids: list[tuple[int, int]], image_token: int, n: int
) -> np.ndarray:
  """int[B, T]: which row of `read_images`, flattened, stands at each place; -1 at text."""
  rows = [i * (n // 4) + np.arange(h * w // 4) for i, (h, w) in enumerate(grids)]
  index = np.full(tokens.shape, -1, np.int32)
  index[tokens == image_token] = np.concatenate(rows)
  return index


@dataclasses.dataclass
class Prompt:
  """The recorded understanding batch, embedded."""

  x: jax.Array
  positions: np.ndarray
  deltas: np.ndarray
  segments: np.ndarray
  images: np.ndarray


def understanding(model: Qwen, recorded: Any, n: int = 104) -> Prompt:
  tokens, mask = (recorded[f"und.{k}"].astype(np.int32) for k in ("input_ids", "attention_mask"))
  grids = [(int(h), int(w)) for _, h, w in recorded["und.grid_thw"]]
  images = read_images(model, recorded["und.pixel_values"], grids, n)
  index = image_index(tokens, grids, 503, n)
  positions, deltas = mrope.mrope_positions(tokens, mask, grids, 503, 2)
  flat = np.concatenate([images[i, : h * w // 4] for i, (h, w) in enumerate(grids)])
  return Prompt(inputs(model, tokens, images, index), positions, deltas, mask, flat)


def test_more_padding_of_images_changes_nothing(model, recorded):
  few, many = (understanding(model, recorded, n).images for n in (96, 160))
  np.testing.assert_allclose(few, many, rtol=0, atol=2e-6 * np.abs(few).max())


def test_greedy_tokens_through_the_cache(model, recorded):
  p, steps = understanding(model, recorded), 12
  extend = jax.jit(lambda m, x, at, cache: m.lm.extend(x, at, cache))

  def choose(hidden: jax.Array) -> np.ndarray:
    logits = np.array(model.lm.logits(hidden[:, -1:]))
    logits[..., 495:] = -np.inf
    return logits.argmax(-1).astype(np.int32)

  prefill = jax.jit(lambda m, *a: m.lm.prefill(*a, 39 + steps))
  hidden, cache = prefill(model, p.x, p.positions, p.segments)
  found = [choose(hidden)]
  for s in range(steps - 1):
    at = np.broadcast_to(39 + s + p.deltas, (3, 2, 1))
    hidden, cache = extend(model, model.lm.embed(found[-1]), at, cache)
    found.append(choose(hidden))
  np.testing.assert_array_equal(np.concatenate(found, 1), recorded["und.greedy_tokens"])
  assert extend._cache_size() == 1


def slots() -> np.ndarray:
  return Tensors(TINY).read("model.latent_queries")


@jax.jit
def with_slots(model: Qwen, tokens: jax.Array, segments: jax.Array, slots: jax.Array) -> jax.Array:
  """Hidden vectors of slots behind left-padded prompts, the plain form."""
  x = jnp.concatenate([model.lm.embed(tokens), jnp.repeat(slots, tokens.shape[0], 0)], 1)
  segments = jnp.pad(segments, ((0, 0), (0, slots.shape[1])), constant_values=1)
  return model.lm(x, decoder_lm.plain_positions(segments), segments)[:, tokens.shape[1] :]


@jax.jit
def shortcut(model: Qwen, tokens: jax.Array, segments: jax.Array, slots: jax.Array) -> jax.Array:
  """The same with the prompt under stop_gradient in a cache (spec 11)."""
  (b, p), q = tokens.shape, slots.shape[1]
  positions = decoder_lm.plain_positions(segments)
  _, cache = model.lm.prefill(model.lm.embed(tokens), positions, segments, p + q)
  after = positions[:, -1:] + 1 + jnp.arange(q)
  hidden, _ = model.lm.extend(jnp.repeat(slots, b, 0), after, jax.lax.stop_gradient(cache))
  return hidden


def prompts(recorded: Any) -> list[np.ndarray]:
  train = recorded["train.input_ids"]
  ends = recorded["train.query_start"]
  rows = [recorded["gen0.prompt_ids"][0], recorded["gen1.prompt_ids"][0]]
  return rows + [row[:end] for row, end in zip(train, ends, strict=True)]


def left_padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  length = max(map(len, rows))
  tokens = np.full((len(rows), length), 500, np.int32)
  for b, row in enumerate(rows):
    tokens[b, length - len(row) :] = row
  segments = np.stack([np.arange(length) >= length - len(row) for row in rows])
  return tokens, segments.astype(np.int32)


def expected_hidden(recorded: Any) -> list[np.ndarray]:
  pair = recorded["train.query_hidden"]
  return [recorded["gen0.query_hidden"], recorded["gen1.query_hidden"], pair[:1], pair[1:]]


FORMS = pytest.mark.parametrize(
  ("kind", "form"), [("plain", with_slots), ("cache", shortcut)], ids=["plain", "shortcut"]
)


@FORMS
def test_query_hidden(model, recorded, check, kind, form):
  for name, row in zip(("gen0", "gen1"), prompts(recorded), strict=False):
    found = form(model, *left_padded([row]), slots())
    check(f"{name}.query_hidden, {kind}", found, BAR, recorded[f"{name}.query_hidden"])
  found = form(model, *left_padded(prompts(recorded)[2:]), slots())
  check(f"train.query_hidden, {kind}", found, BAR, recorded["train.query_hidden"])


@FORMS
def test_left_padded_batch_equals_rows_alone(model, recorded, check, kind, form):
  together = form(model, *left_padded(prompts(recorded)), slots())
  expected = np.concatenate(expected_hidden(recorded))
  check(f"*.query_hidden, left-padded batch, {kind}", together, BAR, expected)


def test_shortcut_gradients_are_exact(model, recorded, check):
  tokens, segments = left_padded(prompts(recorded))
  weight = np.random.default_rng(0).normal(size=(4, 4, 64)).astype(np.float32)

  def loss(slots: jax.Array, form: Callable[..., jax.Array]) -> jax.Array:
    return jnp.sum(weight * form(model, tokens, segments, slots))

  exact, short = (jax.grad(loss)(jnp.asarray(slots()), f) for f in (with_slots, shortcut))
  check("d loss / d slots, shortcut", short, BAR, exact)


def test_right_padded_prompt_in_the_cache(model, recorded, check):
  """Padding between prompt and slots is harmless in the cache, being invisible."""
  row, length = prompts(recorded)[1], 25
  tokens = np.pad(row, (0, length - len(row)), constant_values=500)[None].astype(np.int32)
  segments = (np.arange(length) < len(row)).astype(np.int32)[None]
  found = shortcut(model, tokens, segments, slots())
  check("gen1.query_hidden, right-padded, cache", found, BAR, recorded["gen1.query_hidden"])


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputation_changes_nothing(model, recorded, check, remat):
  tokens, segments = left_padded(prompts(recorded))
  other = load_tiny(remat=remat)

  def loss(slots: jax.Array, model: Qwen) -> jax.Array:
    return jnp.sum(shortcut(model, tokens, segments, slots) ** 2)

  expected, found = (jax.grad(loss)(jnp.asarray(slots()), m) for m in (model, other))
  check(f"d loss / d slots, remat {remat}", found, BAR, expected)


@pytest.mark.parametrize(
  "name",
  [
    "model.layers.1.self_attn.k_proj.bias",
    "model.layers.2.post_attention_layernorm.weight",
    "visual.blocks.3.attn.qkv.bias",
    "visual.merger.mlp.0.weight",
  ],
)
def test_an_altered_weight_is_caught(recorded, name):
  tensors = Tensors(TINY)

  def read(key: str, index: table.Index) -> np.ndarray:
    value = tensors.read(key, index)
    return value * np.float32(1.01) if key == name else value

  p = understanding(altered := load_tiny(read), recorded)
  hidden, _ = plain(altered, p.x, p.positions, p.segments)
  expected = recorded["und.last_hidden"]
  found = np.where(p.segments[..., None] != 0, hidden, 0)
  error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
  assert error > 3 * 1.5 * BAR, f"altering {name} gives {error:.1e}"


def test_bfloat16_is_near(recorded, check):
  """Loose: eight bits of mantissa through seven blocks of random weights."""
  p = understanding(model := load_tiny(dtype="bfloat16"), recorded)
  hidden, logits = plain(model, p.x, p.positions, p.segments)
  assert hidden.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  valid = p.segments[..., None] != 0
  images, wanted = p.images.astype(np.float32), recorded["und.last_hidden"]
  check("und.image_embeds, bfloat16", images, 2e-2, recorded["und.image_embeds"])
  check("und.last_hidden, bfloat16", np.where(valid, hidden, 0), 2e-2, wanted)


def transformers_model(lm: decoder_lm.Config, vision: qwen_vision.Config) -> Any:
  """A freshly randomised Qwen2.5-VL of these sizes; norms and biases too are random."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  rope: dict[str, Any] = dict(rope_type="default", rope_theta=lm.rope_theta)
  text: dict[str, Any] = dict(
    vocab_size=lm.vocab_size,
    hidden_size=lm.dim,
    intermediate_size=lm.mlp_dim,
    num_hidden_layers=lm.depth,
    num_attention_heads=lm.heads,
    num_key_value_heads=lm.kv_heads,
    rope_parameters=rope | dict(mrope_section=list(lm.mrope_section)),
    rms_norm_eps=lm.norm_eps,
  )
  tower: dict[str, Any] = dict(
    hidden_size=vision.dim,
    depth=vision.depth,
    num_heads=vision.heads,
    intermediate_size=vision.mlp_dim,
    out_hidden_size=vision.out_dim,
    fullatt_block_indexes=list(vision.full_layers),
    window_size=vision.window_size,
  )
  config = transformers.Qwen2_5_VLConfig(
    text_config=text | dict(pad_token_id=0, bos_token_id=0, eos_token_id=0),
    vision_config=tower,
    image_token_id=110,
    video_token_id=111,
    vision_start_token_id=112,
    vision_end_token_id=113,
    tie_word_embeddings=lm.tie_embeddings,
    attn_implementation="eager",
  )
  torch.manual_seed(3)
  oracle = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
  with torch.no_grad():
    for p in oracle.parameters():
      wide = 0.3 if p.ndim == 1 else 1.2 / p[0].numel() ** 0.5
      p.copy_(torch.randn(p.shape) * wide + (1.0 if p.ndim == 1 else 0.0))
  return oracle


@pytest.mark.torch
@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_transformers_of_today(check, sizes, tie):
  """Two rows, one with two images and one with none and left padding; names of transformers 5."""
  torch = pytest.importorskip("torch")
  lm = dataclasses.replace(random_model.backbone(sizes, vocab_size=120), tie_embeddings=tie)
  vision = random_model.vision(sizes, lm.dim)
  print(lm, vision)
  oracle = transformers_model(lm, vision)
  state = {k: v.detach().numpy() for k, v in oracle.state_dict().items()}
  shapes = {k: v.shape for k, v in state.items()}
  model = load(lm, vision, shapes, lambda name, index: state[name][index])
  grids = [(6, 10), (4, 4)]
  rng = np.random.default_rng(1)
  pixels = rng.normal(size=(76, 1176)).astype(np.float32)
  text = rng.integers(1, 100, (2, 12))
  row = [*text[0, :3], 112, *[110] * 15, 113, *text[0, 3:5], 112, *[110] * 4, 113, *text[0, 5:]]
  tokens, mask = left_padded([np.array(row), text[1]])
  tokens = np.where(mask == 1, tokens, 0).astype(np.int32)
  with torch.no_grad():
    out = oracle(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=torch.tensor(mask).long(),
      pixel_values=torch.tensor(pixels),
      image_grid_thw=torch.tensor([(1, *g) for g in grids]),
      mm_token_type_ids=torch.tensor((tokens == 110).astype(np.int64)),
      output_hidden_states=True,
    )
  images = read_images(model, pixels, grids, 64)
  index = image_index(tokens, grids, 110, 64)
  positions, _ = mrope.mrope_positions(tokens, mask, grids, 110, 2)
  hidden, logits = plain(model, inputs(model, tokens, images, index), positions, mask)
  kind = "tied" if tie else "untied"
  valid = mask == 1
  last = out.hidden_states[-1].numpy()[valid]
  check(f"transformers, {kind}: last hidden", np.asarray(hidden)[valid], BAR, last)
  check(f"transformers, {kind}: logits", np.asarray(logits)[valid], BAR, out.logits.numpy()[valid])
