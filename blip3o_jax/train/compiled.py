"""The step and the held-out loss, compiled ahead for each shape of batch that occurs."""

import time
from typing import Any

from absl import logging
import jax

from blip3o_jax import sharding
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step
from blip3o_jax.train.setup import Setup
from blip3o_jax.train.state import TrainState


class Compiled:
  """The step and the held-out loss, compiled once for each shape of batch."""

  def __init__(self, setup: Setup):
    cfg, part, mesh = setup.cfg, setup.part, setup.mesh
    whole = sharding.replicated(mesh)
    self._cache: dict[Any, Any] = {}
    self.seconds = 0.0  # spent on compiling so far
    make_key = jax.jit(train_state.named_key, static_argnums=(0, 1), out_shardings=whole)
    self.key, self.eval_key = make_key(cfg.seed, "train"), make_key(cfg.seed, "eval")
    step = train_step.make_step(
      part,
      setup.tx,
      accumulate=cfg.accumulate,
      cast_params=cfg.cast_params,
      ema_decay=cfg.ema_decay,
      learning_rate=optimizer.schedule(cfg.optimizer, cfg.steps),
    )
    places = jax.tree.map(lambda x: x.sharding, setup.abstract)
    self._step = jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
    self._evaluate = jax.jit(train_step.make_evaluate(part), out_shardings=whole)
    self._fold = jax.jit(jax.random.fold_in, out_shardings=whole)

  def step(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
    """One update; the state's buffers are donated."""
    return self._get("step", self._step, (state, frozen, batch, self.key))

  def evaluate(self, params: Any, frozen: Any, batch: Any, index: int) -> Any:
    """Metrics of held-out batch `index`, with the same noise at every step of the run."""
    key = self._fold(self.eval_key, index)
    return self._get("held-out loss", self._evaluate, (params, frozen, batch, key))

  def _get(self, name: str, function: Any, args: tuple[Any, ...]) -> Any:
    spec = {k: (v.shape, str(v.dtype)) for k, v in args[2].items()}
    key = (name, tuple(sorted(spec.items())))
    if key not in self._cache:
      began = time.monotonic()
      self._cache[key] = function.lower(*args).compile()
      shapes = ", ".join(f"{k} {t}{list(s)}" for k, (s, t) in spec.items())
      seconds = time.monotonic() - began
      self.seconds += seconds
      logging.info("compiled the %s in %.1f s for %s", name, seconds, shapes)
      logging.info("memory per device: %s", memory(self._cache[key]))
    return self._cache[key](*args)


def memory(compiled: Any) -> str:
  """What XLA says a compiled function needs on a device."""
  found = compiled.memory_analysis()
  if found is None:
    return "not reported by this backend"
  parts = {
    "arguments": found.argument_size_in_bytes,
    "outputs": found.output_size_in_bytes,
    "of them shared": found.alias_size_in_bytes,
    "temporary": found.temp_size_in_bytes,
  }
  return ", ".join(f"{name} {train_state.readable(size)}" for name, size in parts.items())
