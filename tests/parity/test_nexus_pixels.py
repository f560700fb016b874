"""Nexus-Gen's decoders and autoencoder against the recorded PyTorch reference."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.diffusion import flow
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen import rows as nexus_rows
from blip3o_jax.verify.compare import relative_error
from blip3o_jax.weights import pickles
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import autoencoder as autoencoder_rows
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-nexus-gen"
# Largest absolute rounding of the reference itself, as its README says; of gradients a share of
# their largest entry.
MERGED, VELOCITY, LOOP, LATENT, DECODED, GRADIENT = 8e-6, 3e-6, 7e-6, 6e-7, 4e-6, 1e-5


class Networks(nnx.Module):
  """What `painting` reads of the whole module."""

  def __init__(self, cfg: Any, rngs: nnx.Rngs):
    lm, dit, vae, sizes = cfg
    merger = sizes["merger"]
    self.generator = decoders.Generator(lm.dim, dit, rngs=rngs)
    self.editor = decoders.Editor(
      lm,
      dit,
      depth=merger["num_layers"],
      expand=merger["expand_ratio"],
      base_grid=sizes["merger_base_grid"][1],
      rngs=rngs,
    )
    self.autoencoder = autoencoder.Autoencoder(vae, rngs=rngs)
    self.constants = decoders.Constants(dit, sizes["negative_context_tokens"], rngs=rngs)


def configs() -> Any:
  """Of the miniature: language model, transformer, autoencoder, and the rest."""
  sizes = json.loads((TINY / "tiny.json").read_text())
  told = json.loads((TINY / "config.json").read_text())
  dit, vae = sizes["dit"], sizes["vae"]
  lm = decoder_lm.Config(
    vocab_size=told["vocab_size"],
    dim=told["hidden_size"],
    depth=told["num_hidden_layers"],
    heads=told["num_attention_heads"],
    kv_heads=told["num_key_value_heads"],
    head_dim=told["hidden_size"] // told["num_attention_heads"],
    mlp_dim=told["intermediate_size"],
    mrope_section=tuple(told["rope_scaling"]["mrope_section"]),
    norm_eps=told["rms_norm_eps"],
  )
  transformer = flux.Config(
    dim=dit["dim"],
    heads=dit["num_heads"],
    axes=tuple(dit["axes_dims_rope"]),
    double_depth=dit["num_double_blocks"],
    single_depth=dit["num_single_blocks"],
    context_dim=dit["context_dim"],
    pooled_dim=dit["pooled_dim"],
  )
  pixels = autoencoder.Config(
    latent_channels=vae["z_channels"],
    channels=tuple(vae["ch"] * n for n in vae["ch_mult"]),
    groups=vae["norm_groups"],
    quant_conv=False,
    post_quant_conv=False,
    scaling_factor=vae["scaling_factor"],
    shift_factor=vae["shift_factor"],
  )
  return lm, transformer, pixels, sizes


def table_of(which: str, cfg: autoencoder.Config, names: list[str]) -> list[table.Row]:
  """The rows of one file, in full."""
  if which == "autoencoder":
    found = autoencoder_rows.rows(cfg.channels, cfg.depth, quant_conv=False, post_quant_conv=False)
    return table.prefixed(autoencoder_rows.adapt(found, names), "", "autoencoder/")
  return nexus_rows.decoder_rows("generator" if which == "generator" else "editor", names)


FILES = {
  "generator": "generation_decoder.safetensors",
  "editor": "edit_decoder.safetensors",
  "autoencoder": "ae.safetensors",
}


@pytest.fixture(scope="module")
def recorded() -> Tensors:
  return Tensors(TINY / "io.safetensors")


@pytest.fixture(scope="module")
def networks(recorded: Tensors) -> Networks:
  """Everything that the files hold, and the two given constants."""
  cfg = configs()
  module = layers.abstract(lambda rngs: Networks(cfg, rngs))
  graphdef, state = nnx.split(module)
  shapes = trees.flatten(nnx.to_pure_dict(state))
  found: dict[str, Any] = {
    "constants/pooled": jnp.asarray(recorded.read("cond.pooled")[0]),
    "constants/context": jnp.asarray(recorded.read("cond.negative_context")[0]),
  }
  for which, name in FILES.items():
    tensors = Tensors(TINY / name)
    mine = {p: x for p, x in shapes.items() if p.startswith(f"{which}/")}
    rows = table_of(which, cfg[2], list(tensors))
    plan = table.plan(rows, tensors, {p: tuple(x.shape) for p, x in mine.items()}, where=name)
    found |= tables.filled(plan, lambda n, i, t=tensors: t.read(n)[i], mine)
    again = dict(table.export(rows, {p: found[p] for p in mine}))
    assert set(again) == set(tensors)
    for n in tensors:  # out as they came in, shapes of 1x1 convolutions too
      np.testing.assert_array_equal(again[n], tensors.read(n), err_msg=n)
  return nnx.merge(graphdef, trees.unflatten(found))


@pytest.fixture
def near(recorded: Tensors, request: pytest.FixtureRequest) -> Callable[..., None]:
  """near(name, value, rounding): within 1.5 of it or 1e-5 relative, and a row of the table."""

  def run(name: str, value: Any, rounding: float) -> None:
    found, wanted = np.asarray(value), recorded.read(name)
    error = relative_error(found, wanted)
    request.node.user_properties.append(("parity", (name, str(found.shape), error, 1e-5)))
    largest = float(np.abs(found - wanted).max())
    assert largest <= 1.5 * rounding or error <= 1e-5, f"{name}: {largest:.1e}, {error:.1e}"

  return run


def last(x: np.ndarray) -> jax.Array:
  """Channels first to last."""
  return jnp.asarray(np.moveaxis(x, 1, -1))


def first(x: Any) -> np.ndarray:
  """Channels last to first."""
  return np.moveaxis(np.asarray(x), -1, 1)


call = jax.jit(lambda module, *args: module(*args))
encode = jax.jit(lambda module, x: (jnp.concatenate(module.encode(x), -1), module.latents(x)))
decode = jax.jit(lambda module, x: module.decode(x))
sample = jax.jit(painting.sample)


def text_ids(decoder: decoders.Decoder, given: Any, size: Any) -> np.ndarray:
  """Those of a context, which is not computed."""
  found: list[np.ndarray] = []
  vectors, reference = given
  jax.eval_shape(lambda: found.append(decoder.context(vectors, reference, size)[1]))
  return found[0]


def unscaled(vae: autoencoder.Autoencoder, latents: jax.Array) -> jax.Array:
  return latents / vae.cfg.scaling_factor + vae.cfg.shift_factor


def test_adapter_and_merger(networks: Networks, recorded: Tensors, near: Callable) -> None:
  vectors, editing = recorded.read("gen.image_vectors"), recorded.read("edit.image_vectors")
  reference = recorded.read("merger.reference_embeds")
  positions = decoders.merger_positions([81, 324], networks.editor.merger.base_grid)
  np.testing.assert_array_equal(positions[:, None], recorded.read("merger.position_ids"))
  near("adapter.output", call(networks.generator.adapter, vectors), MERGED)
  merger = networks.editor.merger
  near("merger.output", call(merger, editing, reference), MERGED)
  near("merger.output_target_only", call(merger, editing), MERGED)


def test_text_ids(recorded: Tensors) -> None:
  names: dict[str, layers.Dtype] = {"text_ids": "float32", "text_ids_bfloat16": "bfloat16"}
  for name, dtype in names.items():
    found = decoders.text_ids([81, 324], (64, 64), dtype)
    np.testing.assert_array_equal(found[None], recorded.read(f"ids_512.{name}"))
  assert found[:81].max() == 28.5  # 28.444 before rounding


def test_sampler(recorded: Tensors) -> None:
  """Bit for bit; the weights, a sum of a thousand exponentials, to their rounding."""
  for steps in (4, 8, 50):
    sigmas, timesteps = flow.schedule(steps, False, decoders.SHIFT, decoders.LAST)
    np.testing.assert_array_equal(sigmas, recorded.read(f"sampler.{steps}.sigmas"))
    np.testing.assert_array_equal(timesteps, recorded.read(f"sampler.{steps}.timesteps"))
    found = painting.table(steps)
    np.testing.assert_array_equal(found.timesteps[:steps], timesteps)
  sigmas, weights = flow.training(decoders.SHIFT, decoders.LAST)
  np.testing.assert_array_equal(sigmas, recorded.read("sampler.train.sigmas"))
  np.testing.assert_array_equal(sigmas * np.float32(1000), recorded.read("sampler.train.timesteps"))
  np.testing.assert_allclose(weights, recorded.read("sampler.train.weights"), rtol=1e-6, atol=1e-6)
  assert weights[0] == 0
  assert int(np.argmax(weights)) == 751


def test_autoencoder(networks: Networks, recorded: Tensors, near: Callable) -> None:
  vae = networks.autoencoder
  images = last(recorded.read("vae.image"))
  moments, latents = encode(vae, images)
  near("vae.moments", first(moments), LATENT)
  near("vae.latent", first(latents), LATENT)
  undone = unscaled(vae, last(recorded.read("vae.decode_latent")))
  near("vae.decoded", first(decode(vae, undone)), DECODED)


# Two of the five; `test_nexus_verify` replays them all.
LOOPS = {"loop_gen_cfg": ("generator", 4, 3.0), "loop_edit": ("editor", 4, None)}


@pytest.mark.parametrize("name", LOOPS)
def test_loop(networks: Networks, recorded: Tensors, near: Callable, name: str) -> None:
  """Every step's latents, from a table that ends there, and the picture."""
  which, steps, scale = LOOPS[name]
  vectors = recorded.read(f"{'gen' if which == 'generator' else 'edit'}.image_vectors")
  reference = None if which == "generator" else recorded.read("merger.reference_embeds")
  given = (vectors, reference)
  noise, visited = last(recorded.read(f"{name}.noise")), painting.table(steps)
  size = (noise.shape[1], noise.shape[2])
  ids = text_ids(getattr(networks, which), given, size)
  np.testing.assert_array_equal(ids[None], recorded.read(f"{name}.text_ids"))
  np.testing.assert_array_equal(flux.image_ids(*size)[None], recorded.read(f"{name}.image_ids"))
  found = [noise]
  for count in range(1, steps + 1):
    table = visited._replace(steps=np.int32(count))
    found.append(sample(getattr(networks, which), networks.constants, given, noise, table, scale))
  near(f"{name}.latents", first(np.concatenate(found)), LOOP)
  undone = unscaled(networks.autoencoder, found[-1])
  # Two of the small ones, as in `test_autoencoder`: one program less to compile.
  rows = 2 if size == (8, 12) else 1
  decoded = first(decode(networks.autoencoder, jnp.repeat(undone, rows, 0)))[:1]
  near(f"{name}.decoded", decoded, 10 * LOOP)
  shown = painting.bytes_of(np.clip(np.moveaxis(decoded[0], 0, -1) / 2 + 0.5, 0, 1))
  alike(shown, recorded.read(f"{name}.image_u8"), recorded.read(f"{name}.decoded")[0])


def alike(found: np.ndarray, wanted: np.ndarray, decoded: np.ndarray) -> None:
  """Equal pictures, but where the recorded value before truncation is a whole number."""
  assert found.dtype == np.uint8
  off = found.astype(int) - wanted
  values = np.clip(np.moveaxis(decoded, 0, -1) / 2 + 0.5, 0, 1) * np.float32(255)
  whole = np.abs(values - np.round(values)) < 255 * 10 * LOOP
  assert np.abs(off).max() <= 1
  assert not off[~whole].any()
  assert (off != 0).mean() < 1e-3


def test_truncated_not_rounded() -> None:
  values = np.asarray([0, 0.9999, 1.0, 254.9 / 255, 0.5], np.float32)
  assert painting.bytes_of(values).tolist() == [0, 254, 255, 254, 127]


GIVEN = {"fm_gen": "generator", "fm_edit": "editor"}


@pytest.mark.parametrize("name", ["fm_gen", pytest.param("fm_edit", marks=pytest.mark.slow)])
def test_training_loss(
  networks: Networks,
  recorded: Tensors,
  near: Callable,
  monkeypatch: pytest.MonkeyPatch,
  name: str,
) -> None:
  """Everything of a training step of the decoders, and all gradients."""
  which = GIVEN[name]
  decoder, constants = getattr(networks, which), networks.constants
  reference = jnp.asarray(recorded.read(f"{name}.ref_embed")) if which == "editor" else None
  given = (jnp.asarray(recorded.read(f"{name}.embed")), reference)
  noise = last(recorded.read(f"{name}.noise"))
  _, latents = encode(networks.autoencoder, last(recorded.read(f"{name}.image")))
  near(f"{name}.latents", first(latents), LATENT)
  index = jnp.full((2,), recorded.read(f"{name}.timestep_id"))
  sigmas, weights = flow.training(decoders.SHIFT, decoders.LAST)
  sigma, weight = sigmas[index[0]], weights[index[0]]
  np.testing.assert_array_equal(sigma, recorded.read(f"{name}.sigma"))
  np.testing.assert_array_equal(sigma * np.float32(1000), recorded.read(f"{name}.timestep")[0])
  np.testing.assert_allclose(weight, recorded.read(f"{name}.weight"), rtol=1e-6)
  near(f"{name}.noisy_latents", first(flow.mix(latents, noise, sigmas[index])), LATENT)
  near(f"{name}.target", first(noise - latents), LATENT)
  guidance = float(recorded.read(f"{name}.guidance")[0])

  def run(decoder: decoders.Decoder) -> tuple[jax.Array, Any]:
    size = latents.shape[1:3]
    context, _ = decoder.context(*given, size)
    condition = decoder.condition(constants, *given, size, guidance)
    each = decoders.errors(decoder, condition, latents, noise, index)
    return jnp.mean(each), (context, seen.pop())

  seen: list[jax.Array] = []
  velocity_of = decoders.Decoder.velocity

  def watched(*args: Any) -> jax.Array:
    seen.append(velocity_of(*args))
    return seen[0]

  monkeypatch.setattr(decoders.Decoder, "velocity", watched)

  (value, (context, velocity)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(decoder)
  ids = text_ids(decoder, given, latents.shape[1:3])
  np.testing.assert_array_equal(np.stack([ids, ids]), recorded.read(f"{name}.text_ids"))
  near(f"{name}.context", context, MERGED)
  near(f"{name}.prediction", first(velocity), VELOCITY)
  near(f"{name}.loss", value, 0)
  gradients(recorded, name, which, grads)


def gradients(recorded: Tensors, name: str, which: str, grads: Any) -> None:
  """The recorded ones, and the norm of each, in the names of the file."""
  flat = trees.flatten({which: nnx.to_pure_dict(nnx.state(grads))})
  tensors = Tensors(TINY / FILES[which])
  found = dict(table.export(table_of(which, configs()[2], list(tensors)), flat))
  assert set(found) == set(tensors)
  prefix = f"{name}.grad."
  for key in (k for k in recorded if k.startswith(prefix)):
    wanted = recorded.read(key)
    error = np.abs(found[key.removeprefix(prefix)] - wanted).max()
    assert error <= 1.5 * GRADIENT * np.abs(wanted).max(), key
  norms = [np.linalg.norm(np.float64(found[key])) for key in sorted(found)]
  np.testing.assert_allclose(norms, recorded.read(f"{name}.grad_norms"), rtol=1.5 * GRADIENT)


def test_pickles_hold_the_same() -> None:
  pytest.importorskip("torch")
  for stem in ("generation_decoder", "edit_decoder"):
    pickled, safe = pickles.Pickles([TINY / f"{stem}.bin"]), Tensors(TINY / f"{stem}.safetensors")
    assert dict(pickled) == dict(safe)
    for name in safe:
      np.testing.assert_array_equal(pickled.view(name)[...], safe.read(name), err_msg=name)
