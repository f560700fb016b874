"""What a recording of a pixel decoder holds: its calls, their tensors, and how near ours must come.

The autoencoder stays float32 in both types, and so does what the host computes.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import math

import numpy as np

from blip3o_jax.systems.parts.recorded import Bar
from blip3o_jax.systems.parts.recorded import Call

LOOP_STEPS, LOOP_SCALE = 12, 3.0


def grid_of(features: np.ndarray) -> int:
  """Cells a side of recorded features (B, Q, C).

  Raises:
    ValueError: a number of features that is no square.
  """
  count = features.shape[1] if features.ndim == 3 else 0
  side = math.isqrt(count)
  if not side or side * side != count:
    raise ValueError(f"features of shape {features.shape}: expected (1, cells squared, channels)")
  return side


def _squares(inputs: Mapping[str, np.ndarray]) -> None:
  for name in ("features", "null_features"):
    try:
      grid_of(inputs[name])
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from None


CALLS: dict[str, Call] = {
  "unet": Call(
    ("features", "null_features", "unet.sample", "unet.timestep", "unet.time_ids"),
    {"unet.eps": Bar(2e-6)},
    _squares,
  ),
  "encode": Call(("vae.image",), {"vae.mean": Bar(3e-6, None), "vae.logvar": Bar(3e-6, None)}),
  "decode": Call(("vae.latent",), {"vae.decoded": Bar(4e-6, None)}),
  "loop": Call(
    ("features", "null_features", "unet.time_ids", "loop.noise"),
    {
      "loop.timesteps": Bar(0, None),
      "loop.sigmas": Bar(2e-6, None),
      "loop.latent": Bar(2e-6),
      "loop.image": Bar(2e-6),
    },
    _squares,
  ),
}


def recorded(names: Iterable[str]) -> dict[str, Call]:
  """{call: its names}; they are the same in every recording."""
  del names
  return dict(CALLS)
