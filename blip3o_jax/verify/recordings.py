"""What a recording holds: which tensors are given, which came out, and how near ours must be.

A recording is a safetensors file of inputs and outputs of the PyTorch networks, in PyTorch's
layouts (channels first). There are two kinds, told from the names: one of the system, one of the
pixel decoder. Knows no network.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import fnmatch
import re
from typing import Literal

Kind = Literal["system", "decoder"]

# Relative errors that an independent float32 build reached, rounded up; a wrong epsilon hides below
# 1e-5. 0 asks for equality. Another machine adds its own rounding: SLACK times the bar is allowed.
SLACK = 1.5
OTHER_BAR = 1e-5
SHOWN = 30  # faults of one error
# Samplers that are recorded of each prompt: (name, steps, guidance); and the pixel decoder's loop.
SAMPLES = (("features", 30, 3.0), ("features_cfg1_8steps", 8, 1.0))
LOOP_STEPS, LOOP_SCALE = 12, 3.0


@dataclasses.dataclass(frozen=True)
class Call:
  """One use of the networks.

  Attributes:
    inputs: names that it needs. outputs: {pattern of a name, as in fnmatch: bar}.
  """

  inputs: tuple[str, ...]
  outputs: Mapping[str, float]

  def gives(self, name: str) -> bool:
    """Whether `name` is one of the outputs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.outputs)


SYSTEM: dict[str, Call] = {
  "eva": Call(("eva.pixel_values",), {"eva.patch_features": 3e-6, "eva.pooled": 3e-6}),
  "dit": Call(("dit.x", "dit.timestep", "dit.z"), {"dit.velocity": 5e-6}),
  "und": Call(
    ("und.pixel_values", "und.grid_thw", "und.input_ids", "und.attention_mask"),
    {
      "und.image_embeds": 3e-6,
      "und.position_ids": 0,
      "und.rope_deltas": 0,
      "und.last_hidden": 3e-6,
      "und.logits": 3e-6,
      "und.greedy_tokens": 0,
    },
  ),
  "sampler": Call((), {"sampler.timesteps": 0, "sampler.sigmas": 2e-6}),
  "train": Call(
    tuple(
      f"train.{name}"
      for name in ("input_ids", "attention_mask", "query_start", "gen_image", "noise", "u")
    ),
    {
      "train.target_features": 3e-6,
      "train.timesteps": 0,
      "train.sigmas": 2e-6,
      "train.query_hidden": 3e-6,
      "train.prediction": 5e-6,
      "train.loss": 2e-6,
      "train.grad.*": 1.2e-5,
    },
  ),
}
DECODER: dict[str, Call] = {
  "unet": Call(
    ("features", "null_features", "unet.sample", "unet.timestep", "unet.time_ids"),
    {"unet.eps": 2e-6},
  ),
  "encode": Call(("vae.image",), {"vae.mean": 3e-6, "vae.logvar": 3e-6}),
  "decode": Call(("vae.latent",), {"vae.decoded": 4e-6}),
  "loop": Call(
    ("features", "null_features", "unet.time_ids", "loop.noise"),
    {"loop.timesteps": 0, "loop.sigmas": 2e-6, "loop.latent": 2e-6, "loop.image": 2e-6},
  ),
}
# Eight bits of mantissa in every layer: two to three times what the random miniature shows. Greedy
# tokens are not compared there: the error is how far the score of a recorded token lies below the
# best, relative to the largest score.
BFLOAT16: dict[str, float] = {"train.grad.*": 0.15, "*": 0.05}
# What the host computes, and the autoencoder, which stays float32: the same in both.
ALWAYS_FLOAT32 = (
  "und.position_ids",
  "und.rope_deltas",
  "sampler.*",
  "train.timesteps",
  "train.sigmas",
  "loop.timesteps",
  "loop.sigmas",
  "vae.*",
)
PREFIXES = ("unet.", "vae.", "loop.")


def generation(prefix: str) -> Call:
  """The generation of one prompt; a recording numbers its prompts: gen0, gen1, ..."""
  names = {"query_hidden": 3e-6, "features": 5e-6, "features_cfg1_8steps": 5e-6}
  outputs = {f"{prefix}.{name}": bar for name, bar in names.items()}
  return Call((f"{prefix}.prompt_ids", f"{prefix}.noise"), outputs)


def kind_of(names: Iterable[str]) -> Kind:
  """Which of the two kinds of recording holds tensors of these names."""
  is_decoder = any(n.startswith(PREFIXES) or n in ("features", "null_features") for n in names)
  return "decoder" if is_decoder else "system"


def calls(names: Iterable[str], where: str) -> dict[str, tuple[Call, list[str]]]:
  """What has to be replayed: {call: (its names, its recorded outputs)}, in a fixed order.

  Args:
    names: of the recorded tensors. where: names the file in errors.

  Raises:
    ValueError: all unknown names and missing inputs at once, or a file without outputs.
  """
  present = sorted(names)
  known = dict(DECODER if kind_of(present) == "decoder" else SYSTEM)
  if kind_of(present) == "system":
    prefixes = {match[1] for name in present if (match := re.match(r"(gen\d+)\.", name))}
    known |= {prefix: generation(prefix) for prefix in sorted(prefixes)}
  inputs = {name for call in known.values() for name in call.inputs}
  faults = []
  out: dict[str, tuple[Call, list[str]]] = {}
  for name, call in known.items():
    wanted = [n for n in present if call.gives(n)]
    if wanted:
      out[name] = call, wanted
      lost = [n for n in call.inputs if n not in present]
      faults += [f"{n} is missing, the input of {wanted[0]}" for n in lost]
  outputs = {name for _, wanted in out.values() for name in wanted}
  candidates = sorted(inputs | {n for call in known.values() for n in call.outputs})
  for name in present:
    if name not in inputs and name not in outputs:
      near = difflib.get_close_matches(name, candidates, 1)
      faults.append(f"{name} is not a name of a recording" + (f"; near: {near[0]}" if near else ""))
  if faults:
    more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    lines = "\n  ".join([*faults[:SHOWN], *more])
    raise ValueError(f"{where}: {len(faults)} fault(s)\n  {lines}")
  if not out:
    raise ValueError(f"{where}: holds no recorded output; expected some of {', '.join(candidates)}")
  return out


def bar(name: str) -> float:
  """The bar of an output; `OTHER_BAR` for a name that the tables lack."""
  tables = (SYSTEM, DECODER, {"gen": generation("gen*")})
  for call in (call for table in tables for call in table.values()):
    for pattern, value in call.outputs.items():
      if fnmatch.fnmatchcase(name, pattern):
        return value
  return OTHER_BAR


def tolerance(name: str, dtype: str, given: Sequence[tuple[str, float]] = ()) -> float:
  """The largest relative error of an output that passes.

  Args:
    name: of the output. dtype: "float32" or "bfloat16".
    given: (pattern, tolerance) pairs of the user, the last that fits deciding; the pattern "*"
      leaves alone what must be equal.
  """
  value = SLACK * bar(name)
  if dtype == "bfloat16" and not any(fnmatch.fnmatchcase(name, p) for p in ALWAYS_FLOAT32):
    value = next(v for p, v in BFLOAT16.items() if fnmatch.fnmatchcase(name, p))
  for pattern, asked in given:
    if fnmatch.fnmatchcase(name, pattern) and (value or pattern != "*"):
      value = asked
  return value


def parse_tolerance(text: str) -> tuple[str, float]:
  """A (pattern, tolerance) pair from "1e-4" or "train.grad.*=1e-3".

  Raises:
    ValueError: no number, or one that is negative or NaN.
  """
  pattern, sep, number = text.rpartition("=")
  try:
    value = float(number)
  except ValueError:
    raise ValueError(f"--tolerance {text}: expected a number or NAME=number") from None
  if not value >= 0:
    raise ValueError(f"--tolerance {text}: expected 0 or more")
  return (pattern if sep else "*"), value
