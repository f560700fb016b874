"""One run from config to final checkpoint. The system is an argument; a stage is a config."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import json
import signal
import threading
import time
from typing import Any

from absl import logging
from etils import epath
from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np

import blip3o_jax
from blip3o_jax import config
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint
from blip3o_jax.train import distributed
from blip3o_jax.train import metrics
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train.compiled import Compiled
from blip3o_jax.train.setup import Setup
from blip3o_jax.train.setup import Train
from blip3o_jax.train.state import System
from blip3o_jax.train.state import TrainState

Sample = Callable[[nnx.Module, int], np.ndarray]


class NonFiniteError(ValueError):
  """The loss, the gradients or the parameters were not finite at some step."""


@dataclasses.dataclass(frozen=True)
class Finished:
  """What a run leaves.

  Attributes:
    step: the last one done. interrupted: ended by SIGTERM before `steps`, after saving.
    module: the trained model (its average when on). metrics: the last ones logged.
  """

  step: int
  interrupted: bool
  module: nnx.Module
  metrics: dict[str, metrics.Value]


def run(
  cfg: Train,
  system: System,
  model_cfg: Any,
  train_data: distributed.Data,
  eval_data: distributed.Data | None,
  workdir: epath.PathLike,
  *,
  sample: Sample | None = None,
) -> Finished:
  """Trains a system from `cfg` in `workdir`; goes on from the latest checkpoint there.

  Args:
    system: see `state.System`. model_cfg: its config.
    train_data: batches by step, from 0. eval_data: held-out batches from 0 to log.eval_batches.
    workdir: gets config.json, metrics.jsonl, tensorboard/, samples/, profile/ and checkpoints/.
    sample: (module, step) -> uint8[n, H, W, 3], drawn every log.samples_every steps.

  Raises:
    ValueError: configs, weights or checkpoints that do not fit; NonFiniteError (a ValueError) at
      a loss that is not finite.
    FileNotFoundError: a source or a checkpoint that is not there.
  """
  # ---- 1. logging and config ---------------------------------------------------------------
  workdir = epath.Path(workdir).absolute()
  logging.info(
    "blip3o_jax %s, JAX %s, workdir %s", blip3o_jax.__version__, jax.__version__, workdir
  )
  configs = {"train": config.to_dict(cfg), "model": config.to_dict(model_cfg)}
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(configs, indent=2) + "\n")

  # ---- 2. mesh -----------------------------------------------------------------------------
  mesh = distributed.make_mesh(cfg.mesh)
  logging.info("mesh %s of %s", dict(mesh.shape), jax.devices()[0].device_kind)

  # ---- 3. data and batch spec --------------------------------------------------------------
  distributed.check_batch(mesh, cfg.batch, cfg.accumulate)

  # ---- 4. abstract model, partition, table of parameters -----------------------------------
  part = train_state.partition(system, model_cfg, mesh, cfg.trainable, cfg.frozen_dtype)
  for line in train_state.table(part):
    logging.info("%s", line)

  # ---- 5. optimiser and shardings ----------------------------------------------------------
  axes = {path: part.axes[path] for path in part.trained}
  tx = optimizer.make(cfg.optimizer, cfg.steps, axes)
  abstract = train_state.abstract_state(part, tx, mesh, ema=cfg.ema_decay > 0)
  setup = Setup(cfg, system, model_cfg, workdir, mesh, part, tx, abstract)

  with contextlib.ExitStack() as stack:
    stack.enter_context(metrics.without_chatter())
    stack.enter_context(jax.set_mesh(mesh))
    # ---- 6. arrays: resume, or init_from, or fresh -----------------------------------------
    state, frozen, used = loading.first_state(setup)
    start = int(state.step)

    # ---- 7. compile: at the first batch of each shape, timed, memory printed ----------------
    compiled = Compiled(setup)

    # ---- 8. the loop -----------------------------------------------------------------------
    facts = {"version": blip3o_jax.__version__, "sources": loading.to_record(used, workdir)}
    saver = stack.enter_context(checkpoint.Writer(workdir, cfg.checkpoint, configs | facts))
    writer = stack.enter_context(
      metrics.Writer(workdir, start, cfg.steps, tensorboard=cfg.log.tensorboard)
    )
    batches = stack.enter_context(distributed.Prefetch(train_data, mesh, start, cfg.steps))
    loop = Loop(setup, compiled, saver, writer, frozen, eval_data, sample)
    state, interrupted = loop(state, iter(batches))

    # ---- 9. finish -------------------------------------------------------------------------
    loop.save(state)
    saver.wait()
  module = part.module(state.ema or state.params, frozen)
  return Finished(int(state.step), interrupted, module, loop.latest)


class Loop:
  """The loop over steps, and what happens between them."""

  def __init__(
    self,
    setup: Setup,
    compiled: Compiled,
    saver: checkpoint.Writer,
    writer: metrics.Writer,
    frozen: Any,
    eval_data: distributed.Data | None,
    sample: Sample | None,
  ):
    self.setup, self.compiled, self.saver, self.writer = setup, compiled, saver, writer
    self.frozen, self.eval_data, self.sample = frozen, eval_data, sample
    self.latest: dict[str, metrics.Value] = {}
    self._flops = 0.0

  def __call__(self, state: TrainState, batches: Iterator[Any]) -> tuple[TrainState, bool]:
    """Runs to the last step, or to a SIGTERM: (state, interrupted)."""
    cfg, log = self.setup.cfg, self.setup.cfg.log
    history: list[Any] = []
    clock = saved = time.monotonic()
    with _sigterm() as asked, _profile(self.setup) as trace:
      for index, batch in batches:
        done = index + 1
        trace(index)
        compiling = self.compiled.seconds
        state, found = self.compiled.step(state, self.frozen, batch)
        clock += self.compiled.seconds - compiling
        history.append(found)
        self._flops += self._count(batch)
        self.writer.advance(done)
        if metrics.due(done, log.every, cfg.steps):
          self._report(state, done, history, clock)
          history, clock = [], time.monotonic()
        paused = time.monotonic()
        if self.eval_data is not None and metrics.due(done, log.eval_every, cfg.steps):
          self._evaluate(state, done)
        if self.sample is not None and metrics.due(done, log.samples_every, cfg.steps):
          module = self.setup.part.module(state.ema or state.params, self.frozen)
          self.writer.images(done, "samples", np.asarray(self.sample(module, done)))
        stopped = self._stopped(asked, done)
        on_time = not history and self._on_time(saved)
        if stopped or on_time or metrics.due(done, cfg.checkpoint.every_steps, cfg.steps):
          self.save(state)
          saved = time.monotonic()
        clock += time.monotonic() - paused
        if stopped:
          logging.warning("SIGTERM: saved step %d of %d, leaving", done, cfg.steps)
          return state, done < cfg.steps
    return state, False

  def save(self, state: TrainState) -> None:
    """Saves a state unless it is bad, which raises."""
    self._check(state)
    self.saver.save(state)

  def _check(self, state: TrainState) -> None:
    bad = int(state.bad)
    if bad < 0:
      return
    self.saver.wait()
    good = checkpoint.steps(self.setup.workdir)
    where = f"step {good[-1]} in {checkpoint.folder(self.setup.workdir)}" if good else "none"
    raise NonFiniteError(
      f"the loss, the gradients or the parameters stopped being finite at step {bad} (counted from "
      f"0); nothing was saved since. Last good checkpoint: {where}. Lower optimizer.lr, or look at "
      f"the batch of step {bad}"
    )

  def _report(self, state: TrainState, done: int, history: list[Any], clock: float) -> None:
    values = metrics.reduce(history)
    jax.block_until_ready(state.step)  # before the clock is read: steps are only dispatched
    seconds = time.monotonic() - clock
    values["images_per_second"] = self.setup.cfg.batch * len(history) / seconds
    if self._flops:
      rate = self._flops / seconds / self.setup.mesh.size
      values["model_tflops_per_second_per_device"] = rate / 1e12
    self._flops = 0.0
    self.latest = self.latest | values
    self.writer.scalars(done, values)
    self._check(state)

  def _evaluate(self, state: TrainState, done: int) -> None:
    assert self.eval_data is not None
    found = []
    for i in range(self.setup.cfg.log.eval_batches):
      batch = distributed.put(self.eval_data.batch_at(i), self.setup.mesh)
      found.append(self.compiled.evaluate(state.ema or state.params, self.frozen, batch, i))
    values = {f"eval/{name}": value for name, value in metrics.reduce(found).items()}
    self.latest = self.latest | values
    self.writer.scalars(done, values)

  def _count(self, batch: Mapping[str, jax.Array]) -> float:
    count = getattr(self.setup.system, "flops", None)
    if count is None:
      return 0.0
    spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
    return float(count(self.setup.model_cfg, spec))

  def _stopped(self, asked: threading.Event, done: int) -> bool:
    """Whether to leave after this step; all processes agree on the step."""
    if jax.process_count() > 1:
      return bool(multihost_utils.reached_preemption_sync_point(done))
    return asked.is_set()

  def _on_time(self, saved: float) -> bool:
    """Whether the time policy asks for a checkpoint, by the clock of process 0."""
    minutes = self.setup.cfg.checkpoint.every_minutes
    if not minutes:
      return False
    asks = np.asarray(time.monotonic() - saved >= 60 * minutes)
    if jax.process_count() > 1:
      asks = multihost_utils.broadcast_one_to_all(asks)
    return bool(asks)


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
  """An event that SIGTERM sets; the handler before it comes back at the end.

  Several processes use JAX's own preemption notice, which agrees on a step, so none is installed.
  """
  asked = threading.Event()
  in_main = threading.current_thread() is threading.main_thread()
  if jax.process_count() > 1 or not in_main:
    yield asked
    return
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield asked
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _profile(setup: Setup) -> Iterator[Callable[[int], None]]:
  """A function to call before each step, which starts and stops the trace of `cfg.profile`."""
  first, last = setup.cfg.profile or (-1, -1)
  running = False

  def at(index: int) -> None:
    nonlocal running
    if index == first:
      jax.profiler.start_trace(str(setup.workdir / "profile"))
      running = True
    elif index == last and running:
      jax.profiler.stop_trace()
      running = False

  try:
    yield at
  finally:
    if running:
      jax.profiler.stop_trace()
