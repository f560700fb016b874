"""`blip3o train` on the toy, held up from outside: a file stops its data, another one its device.

Run by tests as a process of its own: held_worker.py FOLDER and the arguments of `blip3o train`.
Process N of several looks for FOLDER/data.N and FOLDER/device.N. A picture takes five seconds.
"""

from pathlib import Path
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import toy

from blip3o_jax import cli
from blip3o_jax import systems
from blip3o_jax.train.run import Train

FOLDER = Path(sys.argv[1])
PAUSE = 5.0  # seconds that a picture takes


def get_config(arg: str = "") -> Any:
  """All leaves are trained, so the run rests on no file."""
  return toy.values(toy.Config(depth=1), Train(batch=8))


def held_up(name: str) -> None:
  """Returns when the file is not there."""
  while (FOLDER / f"{name}.{jax.process_index()}").exists():
    time.sleep(0.05)


class Held(toy.Toy):
  """Its frozen part asks the host, which may not answer."""

  def prepare(self, batch: Any) -> Any:
    def ask(x: Any) -> Any:
      held_up("device")
      return np.zeros((), np.float32)

    zero = jax.pure_callback(ask, jax.ShapeDtypeStruct((), jnp.float32), batch["mask"][0])
    return super().prepare(batch | {"x": batch["x"] + zero})


class Row(toy.Row):
  """A row whose source may not answer."""

  def __call__(self, record: Any, rng: Any) -> Any:
    held_up("data")
    return super().__call__(record, rng)


class System(toy.System):
  """The toy, held up."""

  def __init__(self, asks: bool):
    self.asks = asks

  def build(self, cfg: Any, rngs: Any) -> Any:
    return (Held if self.asks else toy.Toy)(cfg, rngs)

  def transforms(self, cfg: Any, data: Any, tokenizer: Any) -> Any:
    return {bucket: Row(bucket, cfg.dim) for bucket in data.buckets}

  def sampler(self, cfg: Any, samples: Any, tokenizer: str) -> Any:
    def draw(module: Any, step: int) -> Any:
      time.sleep(PAUSE)
      return np.full((3, 4, 4, 3), step, np.uint8)

    return draw


if __name__ == "__main__":
  # Several processes cannot ask their hosts in the midst of a program.
  systems.SYSTEMS["toy"] = System(asks="--coordinator" not in " ".join(sys.argv))
  sys.exit(cli.main(["train", f"--config={__file__}", *sys.argv[2:]]))
