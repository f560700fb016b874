"""Padded prompts to features: the condition, what comes before the sampler's loop, and the loop.

The loop goes from any step to any other, so that whoever watches it is called between its steps.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import Literal

import jax
import numpy as np

from blip3o_jax.diffusion import flow
from blip3o_jax.models import next_dit
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts import watching
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program

Sampler = Literal["euler", "heun"]
STAGE = "features"


def draw(
  network: Network,
  prompt: Mapping[str, Any],
  noise: Any,
  table: flow.Table,
  scale: np.float32 | None,
  sampler: Sampler,
  *,
  watch: watching.Watch | None = None,
  preview: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Any:
  """Features float32[B, h, w, C] of padded prompts, the arguments of `Blip3o.read` by name.

  On a CPU a small model runs with its layers one by one, its rows in shares, see `cores`.

  Args:
    noise: float32[B, h, w, C] at t = 1, or a seed for each row, uint32[B, 2] (`parts.seeds`).
    table: `flow.table` of the number of steps. scale: of guidance; None is unguided, one evaluation
      a step and not two.
    watch: called between the steps. preview: features float32[B, h, w, C] -> pictures of them.

  Raises:
    Whatever `watch` raises.
  """
  if network.module().cfg.objective == "mse":
    return watching.once(_regressed(network, prompt), watch, STAGE, preview)
  # The patches of pictures are not rows of the batch.
  shown_any = prompt.get("patches") is not None
  rows = len(prompt["tokens"])
  number = 1 if shown_any else cores.ways(network, rows)
  network = cores.apart(network)

  # Two programs: where parameters are moved to the device, the language model has left it by then.
  def begin(prompt: Mapping[str, Any], noise: Any) -> tuple[next_dit.Condition, flow.State]:
    return _begin(network, condition(network, prompt), noise, scale is not None)

  looping = cores.halved(network, "denoiser", rows, guided=scale is not None)
  begun = cores.each(begin, cores.shares(prompt, number), cores.shares(noise, number))
  conditions, states = map(list, zip(*begun, strict=True))

  def advance(states: list[flow.State], first: np.int32, last: np.int32) -> list[flow.State]:
    def go(given: next_dit.Condition, state: flow.State) -> flow.State:
      return _advance(looping, given, state, table, (first, last), scale, sampler)

    return cores.each(go, conditions, states)

  def shown(states: list[flow.State], done: int) -> np.ndarray:
    assert preview is not None
    return preview(cores.joined([flow.expected(each, table, done) for each in states]))

  total = int(table.steps)
  states = watching.run(advance, states, total, watch, STAGE, shown if preview else None)
  return cores.joined([each.x for each in states])


@program(brief=True)
def condition(network: Network, prompt: Mapping[str, Any]) -> jax.Array:
  """What the generator is given of padded prompts, float[B, Q, D]."""
  return network.module().condition(**prompt)


@program(brief=True, static_argnums=3)
def _begin(
  network: Network, condition: jax.Array, noise: jax.Array, guided: bool
) -> tuple[next_dit.Condition, flow.State]:
  """What the denoiser is given of a condition float[B, Q, D], and the start of the sampler."""
  module = network.module()
  cfg = module.cfg
  if noise.ndim == 2:
    noise = flow.noise(seed_arrays.keys(noise), (cfg.grid, cfg.grid, cfg.channels))
  return module.given(condition, guided), flow.begin(noise)


@program(static_argnums=6)
def _advance(
  network: Network,
  given: next_dit.Condition,
  state: flow.State,
  table: flow.Table,
  steps: tuple[jax.Array, jax.Array],
  scale: jax.Array | None,
  sampler: Sampler,
) -> flow.State:
  return network.module().advance(given, state, table, *steps, scale, sampler)


@program()
def _regressed(network: Network, prompt: Mapping[str, Any]) -> jax.Array:
  module = network.module()
  return module.regressed(module.condition(**prompt))
