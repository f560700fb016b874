"""EVA tower and DiT: altered weights, bfloat16, and diffusers as a second witness."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables

from blip3o_jax import trees
from blip3o_jax.diffusion import flow
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import eva_vit as eva_rows
from blip3o_jax.weights.rows import next_dit as dit_rows
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
DIT, EVA = "model.dit.model.", "model.gen_vision_tower.vision_tower.model."
Recorded = Mapping[str, np.ndarray]
Check = Callable[..., None]
DIT_BAR = 5e-6


def sizes() -> dict[str, Any]:
  return json.loads((TINY / "tiny.json").read_text())


def dit_config(**other: Any) -> next_dit.Config:
  d = sizes()["dit"]
  return next_dit.Config(
    in_channels=d["in_channels"],
    grid=d["input_size"],
    condition_dim=d["latent_embedding_size"],
    dim=d["dim"],
    depth=d["n_layers"],
    heads=d["n_heads"],
    kv_heads=d["n_kv_heads"],
    multiple_of=d["multiple_of"],
    **other,
  )


def eva_config(**other: Any) -> eva_vit.Config:
  e = sizes()["eva"]
  return eva_vit.Config(
    image_size=e["image_size"],
    patch_size=e["patch_size"],
    dim=e["width"],
    depth=e["layers"],
    heads=e["width"] // e["head_width"],
    mlp_dim=int(e["width"] * e["mlp_ratio"]),
    **other,
  )


def loaded(make: Callable[[], nnx.Module], rows: list[table.Row], prefix: str) -> Any:
  """The module with the weights under a prefix of the golden checkpoint."""
  abstract = nnx.eval_shape(make)
  graphdef, state = nnx.split(abstract)
  params = {
    path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    for path, leaf in trees.flatten(nnx.to_pure_dict(state)).items()
  }
  tensors = Tensors(TINY)
  names = {n: tensors[n] for n in tensors if n.startswith(prefix)}
  sources = table.plan(
    table.prefixed(rows, prefix, ""), names, {p: s.shape for p, s in params.items()}
  )
  values = tables.filled(sources, tensors.read, params)
  return nnx.merge(graphdef, trees.unflatten(values))


def last(x: np.ndarray) -> jax.Array:
  return jnp.asarray(np.moveaxis(x, 1, -1))


def first(x: jax.Array) -> np.ndarray:
  return np.moveaxis(np.asarray(x, np.float32), -1, 1)


@pytest.fixture(scope="module")
def dit() -> next_dit.NextDiT:
  cfg = dit_config()
  return loaded(lambda: next_dit.NextDiT(cfg, rngs=nnx.Rngs(0)), dit_rows.rows(), DIT)


@pytest.fixture(scope="module")
def eva() -> eva_vit.EvaVit:
  cfg = eva_config()
  return loaded(lambda: eva_vit.EvaVit(cfg, rngs=nnx.Rngs(0)), eva_rows.rows(), EVA)


@jax.jit
def velocity(dit: next_dit.NextDiT, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
  return dit(x, t, dit.prepare(z))


@jax.jit
def encode(eva: eva_vit.EvaVit, images: jax.Array) -> jax.Array:
  return eva(images)


def _call(recorded: Recorded) -> tuple[jax.Array, jax.Array, jax.Array]:
  x, t, z = (recorded[f"dit.{name}"] for name in ("x", "timestep", "z"))
  return last(x), jnp.asarray(t), jnp.asarray(z)


def test_every_altered_weight_is_caught(
  dit: next_dit.NextDiT, eva: eva_vit.EvaVit, recorded: Recorded
) -> None:
  call, pixels = _call(recorded), last(recorded["eva.pixel_values"])
  # The softmax does not see what is added to all keys alike.
  blind = ("layers/attn2/norm_k/bias", "blocks/attn/k_proj/bias")
  weak = _weak(dit, lambda m: first(velocity(m, *call)), recorded["dit.velocity"], DIT_BAR)
  weak += _weak(eva, lambda m: encode(m, pixels), recorded["eva.patch_features"], 3e-6)
  assert sorted(weak) == sorted(blind)


def _weak(
  model: nnx.Module, run: Callable[[Any], Any], wanted: np.ndarray, bar: float
) -> list[str]:
  """The parameters whose alteration, in one element, stays below twice the tolerance."""
  graphdef, state = nnx.split(model)
  flat = trees.flatten(nnx.to_pure_dict(state))
  weak = []
  for path, value in flat.items():
    altered = trees.unflatten(flat | {path: value.at[(0,) * value.ndim].add(0.1)})
    found = np.asarray(run(nnx.merge(graphdef, altered)))
    if _error(found, wanted) < 2 * 1.5 * bar:
      weak.append(path)
  return weak


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
  return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def test_bfloat16_is_near(recorded: Recorded) -> None:
  dit_cfg, eva_cfg = dit_config(dtype="bfloat16"), eva_config(dtype="bfloat16")
  dit = loaded(lambda: next_dit.NextDiT(dit_cfg, rngs=nnx.Rngs(0)), dit_rows.rows(), DIT)
  eva = loaded(lambda: eva_vit.EvaVit(eva_cfg, rngs=nnx.Rngs(0)), eva_rows.rows(), EVA)
  out = velocity(dit, *_call(recorded))
  assert out.dtype == jnp.float32
  features = eva(last(recorded["eva.pixel_values"]))
  assert features.dtype == jnp.bfloat16
  pairs = ((first(out), "dit.velocity"), (np.asarray(features), "eva.patch_features"))
  for found, name in pairs:
    wanted = recorded[name]
    error = _error(found, wanted)
    assert 1e-4 < error < 3e-2, f"{name}: {error:.1e}"


@pytest.mark.torch
@pytest.mark.parametrize(("kv_heads", "patch_size"), [(4, 1), (2, 1), (1, 2)])
def test_dit_against_diffusers(check: Check, kv_heads: int, patch_size: int) -> None:
  """A second witness: diffusers' Lumina network under our caption projection, random weights."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

  cfg = dataclasses.replace(
    dit_config(), grid=4, heads=4, kv_heads=kv_heads, patch_size=patch_size, condition_dim=24
  )
  torch.manual_seed(0)
  theirs = diffusers.LuminaNextDiT2DModel(
    sample_size=4,
    patch_size=patch_size,
    in_channels=cfg.in_channels,
    hidden_size=cfg.dim,
    num_layers=cfg.depth,
    num_attention_heads=4,
    num_kv_heads=kv_heads,
    multiple_of=cfg.multiple_of,
    cross_attention_dim=cfg.dim,
    learn_sigma=False,
  )
  with torch.no_grad():
    for p in theirs.parameters():
      p.add_(0.1 * torch.randn(p.shape))
  ours = next_dit.NextDiT(cfg, rngs=nnx.Rngs(1))
  graphdef, state = nnx.split(ours)
  flat = trees.flatten(nnx.to_pure_dict(state))
  caption = {p: v for p, v in flat.items() if p.startswith("caption_projection/")}
  rest = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in flat.items() if p not in caption}
  rows = [r for r in dit_rows.rows() if not r.name.startswith("caption_projection.")]
  tensors = {n: v.numpy() for n, v in theirs.state_dict().items() if n != "pad_token"}
  shapes = {n: v.shape for n, v in tensors.items()}
  sources = table.plan(rows, shapes, {p: s.shape for p, s in rest.items()})
  flat |= tables.filled(sources, lambda name, index: tensors[name][index], rest)
  ours = nnx.merge(graphdef, trees.unflatten(flat))

  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 4, 4, cfg.in_channels)).astype(np.float32)
  t, z = np.array([966.5, 33], np.float32), rng.normal(size=(2, 5, 24)).astype(np.float32)
  c = torch.from_numpy(np.array(ours.caption_projection(jnp.asarray(z))))
  with torch.no_grad():
    wanted = theirs(
      torch.from_numpy(first(jnp.asarray(x)).copy()),
      torch.from_numpy(t),
      c,
      torch.ones(2, 5),
      get_2d_rotary_pos_embed_lumina(cfg.head_dim, 384, 384),
      cross_attention_kwargs={},
      return_dict=False,
    )[0].numpy()
  out = velocity(ours, jnp.asarray(x), jnp.asarray(t), jnp.asarray(z))
  name = f"dit against diffusers, {kv_heads} kv heads, patch {patch_size}"
  check(name, first(out), DIT_BAR, expected=wanted)


@pytest.mark.torch
@pytest.mark.parametrize(("steps", "shift"), [(30, 1.0), (7, 1.0), (30, 3.0)])
def test_sampler_against_diffusers(steps: int, shift: float) -> None:
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
  scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
  sigmas, timesteps = flow.schedule(steps, truncate=False, shift=shift)
  np.testing.assert_array_equal(timesteps, scheduler.timesteps.numpy())
  np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=1e-7)
  x = torch.linspace(-1, 2, 3)[None]
  wanted = x
  for t in scheduler.timesteps:
    wanted = scheduler.step(torch.sin(wanted) + t / 1000, t, wanted, return_dict=False)[0]
  table = flow.table(steps, False, shift)
  out = flow.euler(lambda x, t: jnp.sin(x) + t[:, None] / 1000, jnp.asarray(x.numpy()), table)
  np.testing.assert_allclose(out, wanted.numpy(), rtol=2e-6)
