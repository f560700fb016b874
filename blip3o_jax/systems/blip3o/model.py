"""BLIP3-o: a frozen language model that reads images, and a generator that makes them.

    prompt tokens ─► backbone ─► hidden vectors at the slots = condition z
    image ─► encoder ─► features x0;  x_t = (1 - t) x0 + t noise;  denoiser(x_t, 1000 t, z) ≈
        noise - x0
    noise ─► denoiser, guided, from t = 1 to 0 ─► features ─► parts/painter ─► image
    image patches ─► visual ─► embeddings inside a prompt ─► backbone ─► text

B batch, P prompt length, T row length, Q slots, D width, V vocabulary, h w cells, C channels.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.diffusion import flow
from blip3o_jax.diffusion import guidance
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.blip3o import flops as operations
from blip3o_jax.systems.blip3o import losses
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o.losses import Loss as Loss
from blip3o_jax.systems.parts import features as feature_space
from blip3o_jax.systems.parts import next_token
from blip3o_jax.systems.parts import normalising
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts import slots as visual_slots

# "denoiser" is all of generation: slots, projector, and DiT or regressor.
Part = Literal["visual", "head", "denoiser", "encoder"]
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and design.

  Attributes:
    backbone, visual, denoiser, features: of the networks.
    latents: the autoencoder whose space is the target with `target="latents"`.
    slots: how many. slots_std: of their random start (released: 1). projector: between slots and
      denoiser. image_token: id that image embeddings replace in a prompt.
    objective: flow matching, or regression by a linear map of what the slots read (the paper's
      CLIP + MSE design, spec 6.1). target: the space of x0.
    parts: the networks that are built; cached features need no encoder, generation no head.
    prompt_gradient: "stop" is exact while the backbone is frozen (see `slots.read`).
    prompt_form: of the prompts that are trained on, see `prompts.generation_ids`.
  """

  backbone: decoder_lm.Config
  visual: qwen_vision.Config
  denoiser: next_dit.Config
  features: feature_space.Config
  latents: autoencoder.Config
  slots: int = 64
  slots_std: float = 1.0
  projector: Literal["identity", "linear", "mlp"] = "identity"
  image_token: int = 151655
  objective: Literal["flow", "mse"] = "flow"
  target: Literal["features", "latents"] = "features"
  parts: tuple[Part, ...] = ("visual", "head", "denoiser", "encoder")
  prompt_gradient: Literal["stop", "full"] = "stop"
  prompt_form: prompts.Form = "inference"
  loss: Loss = Loss()

  def __post_init__(self) -> None:
    if self.denoiser.condition_dim != self.backbone.dim:
      raise ValueError(
        f"denoiser.condition_dim {self.denoiser.condition_dim} is not backbone.dim "
        f"{self.backbone.dim}"
      )
    if self.target == "features" and (self.grid, self.channels) != (
      self.features.grid,
      self.features.channels,
    ):
      raise ValueError(
        f"denoiser takes {self.grid} x {self.grid} x {self.channels}, features are "
        f"{self.features.grid} x {self.features.grid} x {self.features.channels}"
      )
    if self.target == "latents" and self.channels != self.latents.latent_channels:
      raise ValueError(f"denoiser.in_channels {self.channels} is not that of config.latents")
    if self.objective == "mse" and self.target == "latents":
      raise ValueError(
        "objective 'mse' with target 'latents' has no diffusion part and is none of the paper's "
        "designs (spec 6.1): choose 'flow', or target 'features'"
      )
    if self.objective == "mse" and self.slots != self.grid**2:
      raise ValueError(f"objective 'mse' needs one slot a cell: {self.slots} is not {self.grid}^2")
    if self.loss.text and "head" not in self.parts:
      raise ValueError("loss.text needs the part 'head'")

  @property
  def grid(self) -> int:
    """Cells a side of x0."""
    return self.denoiser.grid

  @property
  def channels(self) -> int:
    """Channels of x0."""
    return self.denoiser.in_channels


class Blip3o(nnx.Module):
  """The trained and frozen networks of the system; the pixel decoder stands apart."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    backbone = cfg.backbone
    if "head" not in cfg.parts:  # a head that no loss reads is not built
      backbone = dataclasses.replace(backbone, tie_embeddings=True)
    self.cfg = cfg
    self.backbone = decoder_lm.DecoderLM(backbone, rngs=rngs)
    has = cfg.parts.__contains__
    self.visual = qwen_vision.QwenVision(cfg.visual, rngs=rngs) if has("visual") else None
    sizes = (cfg.slots, cfg.backbone.dim, cfg.slots_std)
    self.slots = visual_slots.Slots(*sizes, rngs=rngs) if has("denoiser") else None
    dtype: layers.Dtype = cfg.backbone.dtype
    self.projector = (
      None
      if cfg.projector == "identity" or not has("denoiser")
      else visual_slots.Projector(cfg.projector, cfg.backbone.dim, dtype=dtype, rngs=rngs)
    )
    # Each attribute is assigned once: a None that later becomes a module is an error in nnx.
    flows = has("denoiser") and cfg.objective == "flow"
    self.denoiser = next_dit.NextDiT(cfg.denoiser, rngs=rngs) if flows else None
    self.regressor = (
      layers.linear(cfg.backbone.dim, cfg.channels, ("embed", "rest"), dtype=dtype, rngs=rngs)
      if has("denoiser") and not flows
      else None
    )
    self.encoder = _encoder(cfg, rngs) if has("encoder") else None

  # Understanding -------------------------------------------------------------------------------

  def embed(
    self,
    tokens: jax.Array,
    patches: jax.Array | None = None,
    layout: qwen_vision.Layout | None = None,
  ) -> jax.Array:
    """Token embeddings with image embeddings in the places of `image_token`.

    Args:
      tokens: int[B, T]. patches, layout: of the pictures, see `places.vectors`.

    Returns:
      float[B, T, D].

    Raises:
      ValueError: patches without the part "visual".
    """
    x = self.backbone.embed(tokens)
    if patches is None or layout is None:
      return x
    if self.visual is None:
      raise ValueError("images in a prompt need the part 'visual', absent from config.parts")
    at = tokens == self.cfg.image_token
    found = places.vectors(self.visual, patches, layout, at)
    return jnp.where(at[..., None], found.astype(x.dtype), x)

  # Generation ----------------------------------------------------------------------------------

  def read(
    self,
    tokens: jax.Array,
    segments: jax.Array,
    patches: jax.Array | None = None,
    layout: qwen_vision.Layout | None = None,
  ) -> jax.Array:
    """What the slots read after each prompt: float[B, Q, D] (see `slots.read`).

    Args:
      tokens, segments: int[B, P] left-padded prompts. patches, layout: of their pictures, as in
        `embed`; places of a picture count as those of words do (spec 1.7).
    """
    if self.slots is None:
      raise ValueError("generation needs the part 'denoiser', absent from config.parts")
    inputs = self.embed(tokens, patches, layout)
    return visual_slots.read(
      self.backbone,
      inputs,
      decoder_lm.plain_positions(segments),
      segments,
      self.slots(len(tokens), inputs.dtype),
      prompt_gradient=self.cfg.prompt_gradient,
    )

  def condition(
    self,
    tokens: jax.Array,
    segments: jax.Array,
    patches: jax.Array | None = None,
    layout: qwen_vision.Layout | None = None,
  ) -> jax.Array:
    """What the generator is given, float[B, Q, D], of the arguments of `read`."""
    z = self.read(tokens, segments, patches, layout)
    return z if self.projector is None else self.projector(z)

  def targets(self, images: jax.Array) -> jax.Array:
    """x0 float32[B, h, w, C] of images: uint8, or float for EVA, or in [-1, 1] for latents."""
    if self.encoder is None:
      raise ValueError("a batch of images needs the part 'encoder', absent from config.parts")
    if isinstance(self.encoder, autoencoder.Autoencoder):
      return self.encoder.latents(normalising.signed(images))
    return self.encoder(normalising.clip(images))

  def given(self, z: jax.Array, guided: bool) -> next_dit.Condition:
    """What the denoiser is given at every step of a sampler, of a condition float[B, Q, D].

    With `guided` it is of batch 2B, that of no condition first.
    """
    assert self.denoiser is not None
    condition = self.denoiser.prepare(z)
    if not guided:
      return condition
    null = self.denoiser.prepare(jnp.zeros_like(z[:1]))
    return guidance.join(null, condition, next_dit.BATCH_AXES)

  def advance(
    self,
    given: next_dit.Condition,
    state: flow.State,
    table: flow.Table,
    first: int | jax.Array,
    last: int | jax.Array,
    scale: float | jax.Array | None = 3.0,
    sampler: Literal["euler", "heun"] = "euler",
  ) -> flow.State:
    """Samples features from step `first` to before step `last` (spec 4.4); one loop, to be jitted.

    Args:
      given: of the method of that name, guided unless `scale` is None: one evaluation a step and
        not two. state: of features float32[B, h, w, C]. table: `flow.table` of the number of steps.
      first, last, scale: may be traced.
    """
    assert self.denoiser is not None
    if scale is None:
      velocity = guidance.cfg(self.denoiser, given, None, 1)
    else:
      velocity = guidance.joined(self.denoiser, given, scale, layers.constrain_pairs)
    steps = flow.euler_steps if sampler == "euler" else flow.heun_steps
    return steps(velocity, state, table, first, last)

  def regressed(self, z: jax.Array) -> jax.Array:
    """Features float32[B, h, w, C] of a condition, for the objective "mse"."""
    assert self.regressor is not None
    shape = (len(z), self.cfg.grid, self.cfg.grid, self.cfg.channels)
    return self.regressor(z).astype(jnp.float32).reshape(shape)

  # Training ------------------------------------------------------------------------------------

  def prepare(self, batch: Batch) -> Batch:
    """Replaces `images` by `features`, without gradient; a batch with features stays as it is."""
    if "images" not in batch or "features" in batch:
      return batch
    out = dict(batch)
    out["features"] = jax.lax.stop_gradient(self.targets(out.pop("images")))
    return out

  def weights(self, batch: Batch) -> dict[str, jax.Array]:
    """Normalisers of the whole batch, float32[]: samples, and tokens that carry a text loss."""
    out = {"image": jnp.float32(batch["tokens"].shape[0])}
    if "labels" in batch:
      out["text"] = next_token.weight(batch["labels"])
    return out

  def loss(
    self, batch: Batch, key: jax.Array, weights: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the terms of `Config.loss`, each a sum over its normaliser.

    Args:
      batch: see `batch_spec`. key: of the step. weights: from `weights` on the whole batch.

    Returns:
      float32[] and additive metrics.
    """
    total = jnp.float32(0.0)
    metrics: dict[str, jax.Array] = {}
    if self.cfg.loss.image:
      value, metrics = losses.image(self, batch, key, weights["image"])
      total += self.cfg.loss.image * value
    if self.cfg.loss.text:
      value, more = losses.text(self, batch, weights["text"])
      total, metrics = total + self.cfg.loss.text * value, metrics | more
    return total, metrics


def _encoder(cfg: Config, rngs: nnx.Rngs) -> feature_space.FeatureEncoder | autoencoder.Autoencoder:
  if cfg.target == "features":
    return feature_space.FeatureEncoder(cfg.features, rngs=rngs)
  return autoencoder.Autoencoder(cfg.latents, rngs=rngs)


def build(cfg: Config, rngs: nnx.Rngs) -> Blip3o:
  """The module; abstract under `nnx.eval_shape`."""
  return Blip3o(cfg, rngs=rngs)


def check(cfg: Config, trained: Sequence[str]) -> None:
  """Raises ValueError for a choice of trained leaves that the design does not allow."""
  if cfg.loss.image and cfg.prompt_gradient == "stop":
    wrong = [p for p in trained if p.startswith("backbone/")]
    if wrong:
      raise ValueError(
        f"config.model.prompt_gradient: 'stop' gives no gradient of the prompt, but "
        f"{wrong[0]!r} is to be trained; choose 'full'"
      )
  if fixed := [p for p in trained if p.startswith("encoder/")]:
    raise ValueError(
      f"config.trainable: the encoder makes the targets and stays frozen: {fixed[0]}"
    )


def batch_spec(cfg: Config, batch: int, bucket: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Arrays of a generation batch with prompts of length `bucket`; images if there is an encoder."""
  ids = jax.ShapeDtypeStruct((batch, bucket), jnp.int32)
  name, cells, dtype = "features", (cfg.grid, cfg.grid, cfg.channels), jnp.float32
  if "encoder" in cfg.parts:
    pixels = cfg.features.tower.image_size
    side = pixels if cfg.target == "features" else cfg.grid * cfg.latents.factor
    name, cells, dtype = "images", (side, side, 3), jnp.uint8
  return {"tokens": ids, "segments": ids, name: jax.ShapeDtypeStruct((batch, *cells), dtype)}


flops = operations.step
