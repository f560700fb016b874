"""Nexus-Gen: a language model that reads pictures and predicts them, and two painters of vectors.

    words, pictures seen by visual, prefill at the slots ─► backbone ─► hidden vectors
    hidden ─► logits ─► text;  hidden one place before each slot ─► vision_head ─► vectors
    vectors ─► generator: adapter ─► FLUX ─► latents ─► autoencoder ─► picture
    vectors, reference seen by visual ─► editor: merger ─► FLUX ─► latents ─► the same

Vectors live in the space of what `visual` gives of a picture. Nothing that is written at a slot
depends on what is read there, so all of a picture's vectors come from one pass (spec 2.7).

B batch, T row length, I pictures a row, n slots a picture, r vectors of a reference, D width,
H W pixels, h w latent cells.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import flops as operations
from blip3o_jax.systems.nexus_gen import losses
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen.losses import Loss as Loss
from blip3o_jax.systems.parts import normalising
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts import slots as visual_slots

Part = Literal["visual", "language", "generator", "editor", "autoencoder", "constants"]
PARTS: tuple[Part, ...] = (
  "visual",
  "language",
  "generator",
  "editor",
  "autoencoder",
  "constants",
)
Stage = Literal["language", "generation", "editing"]
Told = Literal["seen", "predicted"]
# The part that a stage trains.
TRAINS: dict[Stage, Part] = {
  "language": "language",
  "generation": "generator",
  "editing": "editor",
}
PIXELS = 512  # a side of what the released decoders were trained to paint
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and design.

  Attributes:
    backbone, visual, flux, autoencoder: of the networks.
    slots: of a picture that is predicted (released: 81).
    target_grid, reference_grid, base_grid: patches a side of a predicted picture, of an editing
      reference, and of the frame in which the merger places both.
    merger_depth, merger_expand: layers, and width over that of FLUX's context, of the merger.
    null_tokens: of the null condition (T5's of the empty text).
    image_token, boi, eoi: ids of a slot, and of the marks before and after a picture.
    guidance: that FLUX is told, before its factor of 1000. form: of prompts and their pictures.
    parts: the networks that are built. stage: what `loss` trains.
    told: what the generation decoder is trained on, vectors that `visual` sees of the picture
      itself (released), or those that the language model predicts of its caption. Where a caption
      leaves much open, the latter are a mean that no picture has (the miniature's are).
  """

  backbone: decoder_lm.Config
  visual: qwen_vision.Config
  flux: flux.Config
  autoencoder: autoencoder.Config
  slots: int = 81
  target_grid: int = 18
  reference_grid: int = 36
  base_grid: int = 72
  merger_depth: int = 1
  merger_expand: int = 4
  null_tokens: int = 512
  image_token: int = 151655
  boi: int = 151652
  eoi: int = 151653
  guidance: float = 3.5
  form: prompts.Form = prompts.Form()
  parts: tuple[Part, ...] = PARTS
  stage: Stage = "language"
  told: Told = "seen"
  loss: Loss = Loss()

  def __post_init__(self) -> None:
    merge, wide = self.visual.merge, self.autoencoder.latent_channels * flux.PATCH**2
    if self.visual.out_dim != self.backbone.dim:
      raise ValueError(
        f"visual.out_dim {self.visual.out_dim} is not backbone.dim {self.backbone.dim}"
      )
    for name in ("target_grid", "reference_grid"):
      if getattr(self, name) % merge:
        raise ValueError(f"{name} {getattr(self, name)} is not a multiple of visual.merge {merge}")
    if self.slots != self.cells(self.target_grid):
      raise ValueError(
        f"slots {self.slots}: expected {self.cells(self.target_grid)}, the merged tokens of a "
        f"target_grid of {self.target_grid} patches a side"
      )
    if self.patches < self.target_grid**2:
      raise ValueError(
        f"form.max_pixels {self.form.max_pixels}: expected at least those of a predicted picture, "
        f"{self.side(self.target_grid)} squared"
      )
    if self.flux.in_channels != wide:
      raise ValueError(
        f"flux.in_channels {self.flux.in_channels} is not {wide}, autoencoder.latent_channels "
        f"{self.autoencoder.latent_channels} of {flux.PATCH} x {flux.PATCH} cells"
      )
    ids = {name: getattr(self, name) for name in ("image_token", "boi", "eoi")}
    if len(set(ids.values())) < len(ids) or max(ids.values()) >= self.backbone.vocab_size:
      raise ValueError(
        f"{ids}: expected three ids below backbone.vocab_size {self.backbone.vocab_size}"
      )
    if TRAINS[self.stage] not in self.parts:
      raise ValueError(f"stage {self.stage!r} needs the part {TRAINS[self.stage]!r}")

  def cells(self, grid: int) -> int:
    """Merged tokens of a picture of `grid` patches a side."""
    return (grid // self.visual.merge) ** 2

  def side(self, grid: int) -> int:
    """Its pixels a side."""
    return grid * self.visual.patch_size

  @property
  def patches(self) -> int:
    """Of a picture that the language model is given, at most."""
    unit = self.visual.merge**2
    return self.form.max_pixels // self.visual.patch_size**2 // unit * unit


class NexusGen(nnx.Module):
  """All networks of the system, those of `Config.parts`; the others are None."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    has, lm = cfg.parts.__contains__, cfg.backbone
    dtype: layers.Dtype = lm.dtype
    self.cfg = cfg
    # Each attribute is assigned once: a None that later becomes a module is an error in nnx.
    self.backbone = decoder_lm.DecoderLM(lm, rngs=rngs) if has("language") else None
    self.vision_head = (
      layers.linear(
        lm.dim,
        lm.dim,
        ("embed", "mlp"),
        bias=False,
        dtype=dtype,
        init=layers.normal(lm.init_std),
        rngs=rngs,
      )
      if has("language")
      else None
    )
    self.slots = (
      visual_slots.Slots(cfg.slots, lm.dim, lm.init_std, one=False, rngs=rngs)
      if has("language")
      else None
    )
    self.visual = qwen_vision.QwenVision(cfg.visual, rngs=rngs) if has("visual") else None
    self.generator = decoders.Generator(lm.dim, cfg.flux, rngs=rngs) if has("generator") else None
    self.editor = editor(cfg, rngs) if has("editor") else None
    self.autoencoder = (
      autoencoder.Autoencoder(cfg.autoencoder, rngs=rngs) if has("autoencoder") else None
    )
    self.constants = (
      decoders.Constants(cfg.flux, cfg.null_tokens, rngs=rngs) if has("constants") else None
    )

  # Language ------------------------------------------------------------------------------------

  def seen(
    self,
    tokens: jax.Array,
    patches: jax.Array | None = None,
    layout: qwen_vision.Layout | None = None,
    outputs: jax.Array | None = None,
  ) -> jax.Array | None:
    """What `visual` sees at the places of pictures, float[B, T, D]; None without pictures.

    Args:
      tokens: int[B, T]. patches, layout: of the pictures, see `places.vectors`.
      outputs: bool[B, T], places of pictures that are predicted and not given; None: all are given.

    Raises:
      ValueError: patches without the part "visual".
    """
    if patches is None or layout is None:
      return None
    at = tokens == self.cfg.image_token
    at = at if outputs is None else at & ~outputs
    return places.vectors(self.part("visual"), patches, layout, at)

  def inputs(
    self,
    tokens: jax.Array,
    labels: jax.Array | None = None,
    seen: jax.Array | None = None,
  ) -> jax.Array:
    """Embeddings of words, of pictures that are shown, and prefill at slots (spec 2.5).

    Args:
      tokens: int[B, T]. labels: int[B, T], the id that each place predicts: where it is
        `image_token`, the next place is a slot. seen: float[B, T, D], see `seen`.

    Returns:
      float[B, T, D].
    """
    x = self.part("backbone").embed(tokens)
    if seen is not None:
      x = jnp.where((tokens == self.cfg.image_token)[..., None], seen.astype(x.dtype), x)
    if labels is None:
      return x
    at = self.outputs(labels)
    prefill = self.part("slots")(1, x.dtype)[0]
    return jnp.where(at[..., None], prefill[(jnp.cumsum(at, 1) - 1) % self.cfg.slots], x)

  def outputs(self, labels: jax.Array) -> jax.Array:
    """Where slots stand, bool[B, T], of labels int[B, T]: after each place that predicts one."""
    return jnp.pad(labels == self.cfg.image_token, ((0, 0), (1, 0)))[:, :-1]

  def hidden(self, batch: Batch, seen: jax.Array | None = None) -> jax.Array:
    """Hidden vectors float[B, T, D] after the final norm.

    Args:
      batch: tokens, segments, labels int[B, T], positions int[B, 3, T]. seen: see `seen`.
    """
    x = self.inputs(batch["tokens"], batch["labels"], seen)
    positions = jnp.moveaxis(batch["positions"], 1, 0)
    return self.part("backbone")(x, positions, batch["segments"])

  def vectors(self, batch: Batch) -> jax.Array:
    """The vectors of the one picture that each row predicts, in one pass (spec 2.8).

    Args:
      batch: tokens, segments, labels int[B, T], positions int[B, 3, T] of rows with exactly n
        labels of `image_token`, and `patches` with its layout of the pictures that are given.

    Returns:
      float[B, n, D] in the compute dtype.
    """
    labels = batch["labels"]
    given = self.seen(batch["tokens"], *places.shown(batch), self.outputs(labels))
    hidden = self.hidden(batch, given)
    order = jnp.argsort(labels != self.cfg.image_token, 1, stable=True)[:, : self.cfg.slots]
    return self.part("vision_head")(jnp.take_along_axis(hidden, order[..., None], 1))

  # Training ------------------------------------------------------------------------------------

  def latents(self, pixels: jax.Array) -> jax.Array:
    """What FLUX paints, float32[B, h, w, C], of pixels [B, H, W, 3], uint8 or in [-1, 1]."""
    found: autoencoder.Autoencoder = self.part("autoencoder")
    return found.latents(normalising.signed(pixels))

  def prepare(self, batch: Batch) -> Batch:
    """What frozen networks make of a batch of a decoder's stage, without gradient.

    `latents` of `pixels`; `features` float[B, n + r, D], unless the batch has them: the vectors
    that the language model predicts of tokens, segments, labels, positions and patches, if there
    are such, then what `visual` sees in `images`, if there are: the picture itself of generation,
    the reference of editing. A batch of the language model stays as it is.
    """
    if self.cfg.stage == "language":
      return batch
    out = dict(batch)
    if "pixels" in out:
      out["latents"] = jax.lax.stop_gradient(self.latents(out.pop("pixels")))
    told = [self.vectors(batch)] if "tokens" in out else []
    if "images" in out:
      told.append(places.seen(self.part("visual"), out.pop("images")))
    if told:
      out["features"] = jax.lax.stop_gradient(jnp.concatenate(told, 1))
    return out

  def weights(self, batch: Batch) -> dict[str, jax.Array]:
    """Normalisers of the whole batch, float32[]: words and slots, or samples of a decoder."""
    if self.cfg.stage == "language":
      return losses.weights(batch["labels"], self.cfg.image_token)
    return {"image": jnp.float32(len(batch["latents" if "latents" in batch else "pixels"]))}

  def loss(
    self, batch: Batch, key: jax.Array, weights: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of `Config.stage`, sums over their normalisers, and additive metrics.

    Args:
      batch: see `batch_spec`, prepared. key: of the step. weights: from `weights` on the whole
        batch.
    """
    if self.cfg.stage == "language":
      return losses.language(self, batch, weights)
    cfg, decoder = self.cfg, self.part(TRAINS[self.cfg.stage])
    features = batch["features"].reshape(len(batch["features"]), -1, cfg.backbone.dim)
    reference = features[:, cfg.slots :] if cfg.stage == "editing" else None
    return decoders.loss(
      decoder,
      self.part("constants"),
      (features[:, : cfg.slots], reference),
      batch["latents"],
      key,
      weights["image"],
      cfg.loss,
      cfg.guidance,
    )

  def part(self, name: str) -> Any:
    """A network; raises ValueError where `Config.parts` leaves it out."""
    if (found := getattr(self, name)) is None:
      part = "language" if name in ("backbone", "vision_head", "slots") else name
      raise ValueError(f"this needs the part {part!r}, absent from config.parts")
    return found


def editor(cfg: Config, rngs: nnx.Rngs) -> decoders.Editor:
  """The editing decoder of a config; abstract under `nnx.eval_shape`."""
  return decoders.Editor(
    cfg.backbone,
    cfg.flux,
    depth=cfg.merger_depth,
    expand=cfg.merger_expand,
    base_grid=cfg.base_grid,
    rngs=rngs,
  )


def build(cfg: Config, rngs: nnx.Rngs) -> NexusGen:
  """The module; abstract under `nnx.eval_shape`."""
  return NexusGen(cfg, rngs=rngs)


def check(cfg: Config, trained: Sequence[str]) -> None:
  """Raises ValueError for a choice of trained leaves that the design does not allow."""
  reached = {
    "language": ("backbone/", "vision_head/", "slots/", "visual/"),
    "generation": ("generator/",),
    "editing": ("editor/",),
  }[cfg.stage]
  if wrong := [p for p in trained if not p.startswith(reached)]:
    raise ValueError(
      f"config.trainable: {wrong[0]} has no gradient in the stage {cfg.stage!r}, which reaches "
      f"{', '.join(reached)}"
    )


def batch_spec(cfg: Config, batch: int, bucket: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Arrays of a batch of `Config.stage`.

  Of the language model and of editing rows of `bucket` tokens with one picture of at most
  form.max_pixels each and, of the language model, the picture that is predicted.
  Of a decoder pixels of 512 a side, and the picture that `visual` sees, or without that part cached
  features.
  """

  def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *shape), dtype)

  out: dict[str, jax.ShapeDtypeStruct] = {}
  live = "visual" in cfg.parts
  if cfg.stage != "language":
    out["pixels"] = array(PIXELS, PIXELS, 3, dtype=jnp.uint8)
    if not live:
      count = cfg.slots + (cfg.cells(cfg.reference_grid) if cfg.stage == "editing" else 0)
      return out | {"features": array(count, cfg.backbone.dim, dtype=jnp.float32)}
    grid = cfg.target_grid if cfg.stage == "generation" else cfg.reference_grid
    if cfg.stage == "editing" or cfg.told == "seen":
      out["images"] = array(cfg.side(grid), cfg.side(grid), 3, dtype=jnp.uint8)
  if cfg.stage == "generation" and cfg.told == "seen":
    return out
  out |= {name: array(bucket) for name in ("tokens", "segments", "labels")}
  out["positions"] = array(3, bucket)
  pictures = {"language": 2, "generation": 0, "editing": 1}[cfg.stage]
  if live and pictures:
    n = cfg.patches
    out["patches"] = array(pictures, n, cfg.visual.patch_dim, dtype=jnp.uint8)
    out["patch_positions"] = array(pictures, n, 2)
    out |= {name: array(pictures, n) for name in ("patch_windows", "patch_segments")}
  return out


flops = operations.step
