"""Results that are not numbers: an error that names the part, in place of a black picture."""

from typing import Any

import jax
import numpy as np

from blip3o_jax import trees
from blip3o_jax.systems.parts.network import Network

SHOWN = 3


class NotFinite(ValueError, ArithmeticError):
  """An output that holds NaN or infinity."""


def check(values: Any, part: str, network: Network) -> None:
  """Raises NotFinite where an output of a part of `network` holds NaN or infinity."""
  if not np.isfinite(np.asarray(values, np.float32)).all():
    raise fault(part, network)


def fault(part: str, network: Network) -> NotFinite:
  """The error about a part whose output is not finite, with the parameters that are not, if any."""
  bad = [p for p, x in trees.flatten(network.params).items() if not _all(x)]
  more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
  cause = f"; so are its parameters {', '.join(bad[:SHOWN])}{more}" if bad else ""
  if not bad:
    cause = "; its parameters are finite: too large a guidance, or a type of too small a range?"
  return NotFinite(f"the output of the {part} is not finite (NaN or infinity){cause}")


def _all(x: Any) -> bool:
  """Whether a leaf is finite; on the host, where no program has to be compiled for its shape."""
  if not jax.dtypes.issubdtype(x.dtype, np.inexact):
    return True
  return bool(np.isfinite(np.asarray(x, np.float32)).all())
