"""What a recording of Nexus-Gen holds: its calls, their tensors, and how near ours must come.

The autoencoder and what the host computes are the same in both types. A picture's bytes are cut
from floats: the error of one is how far our float lies outside the recorded byte.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses

import numpy as np

from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.parts.recorded import Bar
from blip3o_jax.systems.parts.recorded import Call

STEPS = (4, 8, 50)  # of the sampler's tables
PENALTIES = {"tokens_105": 1.05, "tokens_130": 1.3}
# What the host computes, and tables that another library may round otherwise.
_SAME, _TABLE = Bar(0, None), Bar(2e-7, None)
_NEAR, _LOSS, _GRADIENT = Bar(5e-6), Bar(2e-6), Bar(6e-6, 0.15)
# In bfloat16 the error of a token is how far its score lies below the best, of the largest.
_TOKENS = Bar(0)
_PIXELS = Bar(4e-6, None)
_PAINTED = Bar(5e-6, 0.15)  # in bfloat16 the guidance in thousands is rounded, too


@dataclasses.dataclass(frozen=True)
class Loop:
  """A recorded sampler.

  Attributes:
    decoder, steps, scale: of it. target_only: without the reference.
  """

  decoder: painting.Which
  steps: int
  scale: float = 1.0
  target_only: bool = False

  @property
  def given(self) -> tuple[str, ...]:
    """The vectors that it is given."""
    if self.decoder == "generator":
      return ("gen.image_vectors",)
    more = () if self.target_only else ("merger.reference_embeds",)
    return ("edit.image_vectors", *more)


LOOPS = {
  "loop_gen": Loop("generator", 4),
  "loop_gen_cfg": Loop("generator", 4, 3.0),
  "loop_edit": Loop("editor", 4),
  "loop_edit_cfg": Loop("editor", 2, 2.0),
  "loop_edit_target_only": Loop("editor", 2, target_only=True),
}
DITS: dict[str, painting.Which] = {"dit_gen": "generator", "dit_edit": "editor"}
LOSSES: dict[str, painting.Which] = {"fm_gen": "generator", "fm_edit": "editor"}
TRAIN = ("input_ids", "labels", "attention_mask", "pixel_values", "image_grid_thw")
SHOWN = ("pixel_values", "image_grid_thw")
CONSTANTS = ("cond.pooled", "cond.negative_context")
# Pictures that are made of a photo, which a recording may hold or not.
PHOTO = "pre.photo_u8"
MADE = (
  *("target_u8", "reference_bilinear_u8", "reference_bicubic_u8", "input_u8"),
  *("generation_condition_u8", "decoder_target_u8"),
)


def _call(
  prefix: str,
  inputs: Iterable[str],
  outputs: Mapping[str, Bar],
  also: Iterable[str] = (),
) -> Call:
  """A call whose tensors are named under a prefix, but for the inputs `also`."""
  given = (*(f"{prefix}.{name}" for name in inputs), *also)
  return Call(given, {f"{prefix}.{name}": bar for name, bar in outputs.items()})


def _answer(prefix: str, shown: Iterable[str]) -> Call:
  """A prompt that is answered with a picture."""
  bars = {"image_vectors": _NEAR, "read_hidden": _NEAR, "position_ids": _SAME}
  tokens = ("text_tokens", "sequence", "tail_tokens_reference", "tail_tokens_training_positions")
  return _call(prefix, ("input_ids", *shown), {**dict.fromkeys(tokens, _TOKENS), **bars})


def _language() -> dict[str, Call]:
  """Calls of the language model and its tower."""
  return {
    "train": _call(
      "train",
      TRAIN,
      {
        "position_ids": _SAME,
        **dict.fromkeys(("image_embeds", "target_vectors", "inputs_embeds"), _NEAR),
        **dict.fromkeys(("last_hidden", "read_hidden", "predicted_vectors"), _NEAR),
        **dict.fromkeys(("mse", "cosine", "image_loss", "ce", "loss"), _LOSS),
        "loss_code_default_weights": _LOSS,
        "grad.*": _GRADIENT,
        "grad_norms": _GRADIENT,
      },
    ),
    "gen": _answer("gen", ()),
    "edit": _answer("edit", SHOWN),
    "und": _call(
      "und",
      ("input_ids", *SHOWN),
      {
        **dict.fromkeys(("position_ids", "rope_deltas"), _SAME),
        **dict.fromkeys(("image_embeds", "last_hidden", "logits"), _NEAR),
        "tokens": _TOKENS,
      },
    ),
    "gen_penalty": _call("gen_penalty", (), dict.fromkeys(PENALTIES, _TOKENS), ("gen.input_ids",)),
    "forced": _call("forced", ("input_ids",), {"image_vectors": _NEAR}),
    "single": _call(
      "single",
      ("input_ids", "image_grid_thw", "source_pixel_values"),
      dict.fromkeys(("source_embeds", "predicted_vectors"), _NEAR),
    ),
    "v1": _call(
      "v1",
      (),
      {
        **dict.fromkeys(("gen_text_tokens", "edit_text_tokens"), _TOKENS),
        **dict.fromkeys(("gen_image_vectors", "edit_image_vectors"), _NEAR),
        "train_predicted_vectors": _NEAR,
        "train_loss": _LOSS,
      },
      (
        *("gen.input_ids", "edit.input_ids", *(f"edit.{name}" for name in SHOWN)),
        *(f"train.{name}" for name in TRAIN),
      ),
    ),
    "reference": Call(("pre.reference_bilinear_u8",), {"merger.reference_embeds": _NEAR}),
  }


def _pixels() -> dict[str, Call]:
  """Calls of the two decoders and the autoencoder."""
  out = {
    "adapter": _call("adapter", (), {"output": _NEAR}, ("gen.image_vectors",)),
    "merger": _call(
      "merger",
      ("reference_embeds",),
      {"position_ids": _SAME, "output": _NEAR, "output_target_only": _NEAR},
      ("edit.image_vectors",),
    ),
  }
  for name in DITS:
    given = ("latents", "timestep", "guidance", "context", "pooled", "text_ids", "image_ids")
    waves = dict.fromkeys(("time_sinusoid", "guidance_sinusoid"), _PIXELS)
    out[name] = _call(name, given, {**waves, "conditioning": _NEAR, "velocity": _PAINTED})
  tables = {f"{n}.{what}": _TABLE for n in STEPS for what in ("sigmas", "timesteps")}
  tables |= {f"train.{what}": _TABLE for what in ("sigmas", "timesteps")}
  out["sampler"] = _call(
    "sampler", (), {**tables, "train.weights": Bar(1e-6, None), "sinusoid_frequencies": _SAME}
  )
  for name, loop in LOOPS.items():
    bars = {
      **dict.fromkeys(("text_ids", "image_ids"), _SAME),
      **dict.fromkeys(("sigmas", "timesteps"), _TABLE),
      **dict.fromkeys(("latents", "decoded"), _PAINTED),
      "image_u8": Bar(2e-6, 0.3),
    }
    out[name] = _call(name, ("noise",), bars, (*loop.given, *CONSTANTS))
  out["vae"] = _call(
    "vae",
    ("image", "decode_latent"),
    dict.fromkeys(("moments", "latent", "decoded"), _PIXELS),
  )
  for name, which in LOSSES.items():
    more = ("ref_embed",) if which == "editor" else ()
    bars = {
      **dict.fromkeys(("latents", "noisy_latents", "target"), _PIXELS),
      **dict.fromkeys(("sigma", "timestep"), _TABLE),
      **dict.fromkeys(("text_ids", "guidance"), _SAME),
      "weight": Bar(1e-6, None),
      "context": _NEAR,
      "prediction": _PAINTED,
      "loss": _LOSS,
      "grad.*": _GRADIENT,
      "grad_norms": _GRADIENT,
    }
    given = ("embed", *more, "image", "noise", "timestep_id")
    out[name] = _call(name, given, bars, ("cond.pooled",))
  out["ids_512"] = _call("ids_512", (), dict.fromkeys(("text_ids", "text_ids_bfloat16"), _SAME))
  return out


def _pictures(photo: bool) -> Call:
  """What becomes of a photo or, without it, of what was made of it."""
  rows = {"target_pixel_values": Bar(1e-7, None), "reference_pixel_rows": Bar(1e-7, None)}
  grids = dict.fromkeys(("target_grid_thw", "reference_grid_thw"), _SAME)
  given = ("reference_rows", "input_max_pixels")
  if photo:
    return _call("pre", given, {**dict.fromkeys(MADE, _SAME), **rows, **grids}, (PHOTO,))
  return _call("pre", (*given, *MADE), {**rows, **grids})


CALLS = {**_language(), **_pixels()}


def recorded(names: Iterable[str]) -> dict[str, Call]:
  """{call: its names}, those of every recording but for what this one gives and does not compute.

  An answer is recorded where the model began a picture, else its vectors are given; so are the
  vectors of a reference without its picture, and what is made of a photo without the photo.
  """
  present = set(names)
  needed = {
    "gen.image_vectors": ("gen", "gen.text_tokens"),
    "edit.image_vectors": ("edit", "edit.text_tokens"),
    "merger.reference_embeds": ("reference", "pre.reference_bilinear_u8"),
  }
  given = {call for name, (call, of) in needed.items() if name in present and of not in present}
  own = {call: found for call, found in CALLS.items() if call not in given}
  return {**own, "pre": _pictures(PHOTO in present)}


def photo_of(value: np.ndarray) -> np.ndarray:
  """The recorded photo uint8[H, W, 3]; raises ValueError for another array."""
  if value.dtype != np.uint8 or value.ndim != 3 or value.shape[-1] != 3:
    raise ValueError(f"{PHOTO} of {value.dtype}{list(value.shape)}: expected uint8[H, W, 3]")
  return value
