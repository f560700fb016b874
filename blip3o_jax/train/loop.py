"""One run from config to final checkpoint. The system is an argument; a stage is a config."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import itertools
import signal
import threading
import time
from typing import Any

from absl import logging
from etils import epath
from flax import nnx
import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np

import blip3o_jax
from blip3o_jax import config
from blip3o_jax.data.loader import Loader
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint
from blip3o_jax.train import damage
from blip3o_jax.train import distributed
from blip3o_jax.train import goodput
from blip3o_jax.train import lock
from blip3o_jax.train import metrics
from blip3o_jax.train import profiling
from blip3o_jax.train import resume
from blip3o_jax.train import starts
from blip3o_jax.train import watchdog
from blip3o_jax.train.run import Run
from blip3o_jax.train.run import parse
from blip3o_jax.train.setup import Compiled
from blip3o_jax.train.setup import Setup
from blip3o_jax.train.setup import first_state
from blip3o_jax.train.setup import go_on
from blip3o_jax.train.setup import open_data
from blip3o_jax.train.setup import prepare
from blip3o_jax.train.setup import resumed
from blip3o_jax.train.state import TrainState

Sample = Callable[[nnx.Module, int], np.ndarray]


class NonFiniteError(ValueError):
  """The loss, the gradients or the parameters were not finite at some step."""


class SpikesError(ValueError):
  """Too many updates in a row were skipped."""


@dataclasses.dataclass(frozen=True)
class Finished:
  """What a run leaves.

  Attributes:
    step: the last one done. interrupted: ended by SIGTERM before `steps`, after saving.
    first: the step that this call went on from; `step`, where there was nothing left to train.
    module: the trained model (its average when on). metrics: the last ones logged.
  """

  step: int
  first: int
  interrupted: bool
  module: nnx.Module
  metrics: dict[str, metrics.Value]


def start(
  values: ConfigDict | Mapping[str, Any], systems: Mapping[str, Any], workdir: epath.PathLike
) -> Finished:
  """Trains what a config says, by the system of `systems` that it names; see `run`."""
  parsed = parse(values, systems)
  return run(parsed, systems[parsed.system], workdir)


def run(run: Run, system: Any, workdir: epath.PathLike) -> Finished:
  """Trains a system in `workdir`; goes on from the latest checkpoint there.

  Args:
    run: the config. system: see `systems.System`.
    workdir: made when the first batch is there, so that a run that is refused leaves none; gets
      config.json, starts.jsonl, goodput.json, metrics.jsonl, tensorboard/, samples/, profile/,
      records/ and checkpoints/.

  Raises:
    ValueError: configs, data, weights or checkpoints that do not fit; NonFiniteError or
      SpikesError (ValueErrors) at a loss that is not finite or spikes.
    lock.InUseError: another run trains there. checkpoint.SaveError: a checkpoint was not written.
    FileNotFoundError: a source or a checkpoint that is not there.
  """
  # ---- 1. logging and config ---------------------------------------------------------------
  workdir, cfg = epath.Path(workdir).absolute(), run.train
  logging.info("blip3o_jax %s, JAX %s, in %s", blip3o_jax.__version__, jax.__version__, workdir)
  configs = config.to_dict(run)
  if workdir.exists() and not workdir.is_dir():
    raise NotADirectoryError(f"{workdir}: a file; expected the folder of a run")
  clock = goodput.Clock(workdir)

  # ---- 2 to 5. mesh; data and batch spec; model, partition, table; optimiser, shardings ----
  setup = prepare(run, system)
  data = open_data(setup, run.data)
  held_out = open_data(setup, run.eval_data, "eval_data") if cfg.log.eval_every else None
  draws = bool(cfg.log.samples_every)
  sample = system.sampler(run.model, run.samples, run.tokenizer) if draws else None
  logging.info("data: %d records, %d steps an epoch", data.records, data.steps_per_epoch)

  with contextlib.ExitStack() as stack:
    stack.enter_context(clock)
    stack.enter_context(metrics.without_chatter())
    stack.enter_context(jax.set_mesh(setup.mesh))
    stack.enter_context(_naming(workdir))
    mine = stack.enter_context(lock.Lock(workdir))
    # ---- 6. arrays: resume, or init_from, or fresh -----------------------------------------
    with clock.spent("restore"):
      before = resumed(setup, workdir)
      go_on(data, workdir, before)
      state, frozen, used = first_state(setup, workdir, before)
      first = int(state.step)
    clock.begin(first)
    asked = stack.enter_context(_sigterm())  # before any record is read, which takes time
    stack.enter_context(watchdog.Watcher(cfg.watchdog, clock))
    loaded = stack.enter_context(Loader(data, first, cfg.steps))
    prefetch = stack.enter_context(distributed.Prefetch(loaded, setup.mesh, cfg.batch))
    batches = clock.waiting(iter(prefetch))
    head = list(itertools.islice(batches, 1))  # raises for data that cannot be used
    started = starts.facts(setup.mesh)
    if head:
      _claim(workdir, mine, before is None)
      starts.write(workdir, first, started, configs)

    # ---- 7. compile: at the first batch of each shape, timed, memory printed ----------------
    compiled = Compiled(setup, clock)

    # ---- 8. the loop -----------------------------------------------------------------------
    facts: dict[str, Any] = {"version": blip3o_jax.__version__, "start": started}
    facts["sources"] = loading.to_record(used, workdir)
    saver = stack.enter_context(checkpoint.Writer(workdir, cfg.checkpoint, configs | facts))
    writer = stack.enter_context(
      metrics.Writer(workdir, first, cfg.steps, tensorboard=cfg.log.tensorboard)
    )
    ids = metrics.RecordIds(workdir, first, setup.rows) if cfg.log.record_ids else None
    damaged = stack.enter_context(metrics.Quarantine(workdir, first, data.drained))
    files = Files(workdir, mine, saver, writer, damaged, ids)
    loop = Loop(files, setup, compiled, frozen, data, held_out, sample)
    state, interrupted = loop(state, itertools.chain(head, batches), asked)

    # ---- 9. finish -------------------------------------------------------------------------
    with clock.spent("save"):
      loop.save(state)
      saver.wait()
    if head:
      clock.write(int(state.step))
      logging.info("%s", clock.summary())
  module = setup.part.module(state.ema or state.params, frozen)
  return Finished(int(state.step), first, interrupted, module, loop.latest)


def _claim(workdir: epath.Path, mine: lock.Lock, fresh: bool) -> None:
  """Makes the folder of a run and takes its lock, if that is not held already.

  Raises:
    lock.InUseError: another run made it in the meantime.
  """
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
  mine.take()
  if fresh and checkpoint.steps(workdir):
    raise lock.InUseError(f"{workdir}: another run began there at the same time; start again")


@dataclasses.dataclass(frozen=True)
class Files:
  """What writes into the folder of a run."""

  workdir: epath.Path
  lock: lock.Lock
  saver: checkpoint.Writer
  writer: metrics.Writer
  damaged: metrics.Quarantine
  ids: metrics.RecordIds | None


class Loop:
  """The loop over steps, and what happens between them."""

  def __init__(
    self,
    files: Files,
    setup: Setup,
    compiled: Compiled,
    frozen: Any,
    data: Pipeline,
    eval_data: Pipeline | None,
    sample: Sample | None,
  ):
    self.files, self.setup, self.compiled, self.frozen = files, setup, compiled, frozen
    self.data, self.eval_data, self.sample = data, eval_data, sample
    self.latest: dict[str, metrics.Value] = {}
    self.clock = compiled.clock
    self._flops, self._worked, self._first = 0.0, self.clock.working(), 0

  def __call__(
    self, state: TrainState, batches: Iterator[Any], asked: threading.Event
  ) -> tuple[TrainState, bool]:
    """Runs to the last step, or until it is `asked` to leave: (state, interrupted)."""
    cfg, log = self.setup.run.train, self.setup.run.train.log
    history: list[Any] = []
    clock, saved = self.clock, time.monotonic()
    self._first = int(state.step)
    with (
      clock.spent("step"),
      profiling.Profiler(cfg.profile, self.files.workdir, clock) as profiler,
    ):
      for index, batch in batches:
        done = index + 1
        profiler.before(index)
        state, found = self.compiled.step(state, self.frozen, batch)
        clock.steps.follow(found["loss"])
        history.append(found)
        self._flops += self.setup.flops(batch)
        self.files.writer.advance(done)
        if self.files.ids is not None:
          self.files.ids.write(done, self.data.ids_at(index))
        if metrics.due(done, log.every, cfg.steps):
          self._report(state, done, history)
          history = []
          profiler.look(done)
        if self.eval_data is not None and metrics.due(done, log.eval_every, cfg.steps):
          with clock.spent("evaluation"):
            self._evaluate(state, done)
        if self.sample is not None and metrics.due(done, log.samples_every, cfg.steps):
          with clock.spent("sampling"):
            module = self.setup.part.module(state.ema or state.params, self.frozen)
            self.files.writer.images(done, "samples", np.asarray(self.sample(module, done)))
        stopped = self._stopped(asked, done)
        on_time = not history and self._on_time(saved)
        if stopped or on_time or metrics.due(done, cfg.checkpoint.every_steps, cfg.steps):
          with clock.spent("save"):
            self.save(state)
          clock.write(done)
          saved = time.monotonic()
        if stopped:
          self.files.saver.wait()  # until then nothing is saved
          logging.warning("SIGTERM: saved step %d of %d, leaving", done, cfg.steps)
          return state, done < cfg.steps
    return state, False

  def save(self, state: TrainState) -> None:
    """Saves a state unless it is bad, which raises."""
    self._check(state)
    self.files.lock.check()
    self.files.saver.save(state, self.data.position(int(state.step)))

  def _check(self, state: TrainState) -> None:
    bad, spikes = int(state.bad), self.setup.run.train.spikes
    stopped = int(state.spikes["stopped"]) if state.spikes else 0
    if bad < 0 and not stopped:
      return
    self.files.saver.wait()
    if bad < 0:
      raise SpikesError(
        f"{spikes.stop} updates in a row were skipped up to step {stopped}: the gradients or the "
        f"loss exceeded config.spikes. {resume.advice(self.files.workdir, stopped, self._first)}, "
        "or raise the fields of config.spikes"
      )
    raise NonFiniteError(
      f"the loss, the gradients or the parameters stopped being finite at step {bad} (counted from "
      f"0); nothing was saved since. {resume.advice(self.files.workdir, bad, self._first)}"
    )

  def _report(self, state: TrainState, done: int, history: list[Any]) -> None:
    values = metrics.reduce(history)
    jax.block_until_ready(state.step)  # before the clock is read: steps are only dispatched
    before, self._worked = self._worked, self.clock.working()
    devices = self.setup.mesh.devices.flatten().tolist()
    samples = self.setup.run.train.batch * len(history)
    values |= metrics.rates(samples, self._flops, self._worked - before, devices)
    self._flops = 0.0
    values |= self.clock.write(done)
    shares = self.data.shares(done - len(history), done)
    values |= {f"share/{name}": share for name, share in shares.items()}
    self.files.damaged.write(done)
    self.latest = self.latest | values
    self.files.writer.scalars(done, values)
    self._check(state)
    self.files.saver.check()
    self.files.lock.check()

  def _evaluate(self, state: TrainState, done: int) -> None:
    assert self.eval_data is not None
    train, found = self.setup.run.train, []
    with Loader(self.eval_data, 0, train.log.eval_batches) as batches:
      for i, rows in batches:
        batch = distributed.put(rows, self.setup.mesh, train.batch)
        found.append(self.compiled.evaluate(state.ema or state.params, self.frozen, batch, i))
    values = {f"eval/{name}": value for name, value in metrics.reduce(found).items()}
    self.latest = self.latest | values
    self.files.writer.scalars(done, values)

  def _stopped(self, asked: threading.Event, done: int) -> bool:
    """Whether to leave after this step; all processes agree on the step."""
    if jax.process_count() > 1:
      return bool(multihost_utils.reached_preemption_sync_point(done))
    return asked.is_set()

  def _on_time(self, saved: float) -> bool:
    """Whether the time policy asks for a checkpoint, by the clock of process 0."""
    minutes = self.setup.run.train.checkpoint.every_minutes
    if not minutes:
      return False
    asks = np.asarray(time.monotonic() - saved >= 60 * minutes)
    if jax.process_count() > 1:
      asks = multihost_utils.broadcast_one_to_all(asks)
    return bool(asks)


@contextlib.contextmanager
def _naming(workdir: epath.Path) -> Iterator[None]:
  """Says the folder of a run in errors of a disk that has no room, which name no file."""
  try:
    yield
  except OSError as error:
    if not damage.is_full(error) or error.filename:
      raise
    text = f"{workdir}: {error.strerror}; the run stopped, make room and start it again"
    raise OSError(text) from error


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
