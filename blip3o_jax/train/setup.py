"""From a config to everything that a run needs before it has arrays, and to its compiled step.

The loop trains what `prepare` sets up, and `blip3o plan` compiles it for devices that are not
there: the plan is the step, not a copy of it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import optax

from blip3o_jax import compiling
from blip3o_jax import config
from blip3o_jax import quantized
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import cached
from blip3o_jax.train import checkpoint
from blip3o_jax.train import distributed
from blip3o_jax.train import goodput
from blip3o_jax.train import optimizer
from blip3o_jax.train import placement
from blip3o_jax.train import resume
from blip3o_jax.train import starts
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step
from blip3o_jax.train.resume import Resumed
from blip3o_jax.train.run import Run
from blip3o_jax.train.state import Params
from blip3o_jax.train.state import Partition
from blip3o_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Setup:
  """What every part of a run needs to know and none changes.

  Attributes:
    run: the config. system: its module, see `systems.System`. mesh: over the run's devices.
    part: the model's leaves, trained and frozen. tx: the optimiser. abstract: the train state.
    placed: what lies whole on each device and why, a line each.
  """

  run: Run
  system: Any
  mesh: jax.sharding.Mesh
  part: Partition
  tx: optax.GradientTransformation
  abstract: TrainState
  placed: tuple[str, ...]

  @property
  def rows(self) -> tuple[int, ...]:
    """Of the global batch, those that this process loads."""
    return distributed.local_rows(self.mesh, self.run.train.batch)

  @functools.cached_property
  def caches(self) -> cached.Caches:
    """What checks the caches of features that the run reads; reads the encoder's weights once."""
    return cached.Caches(self.run, self.system)

  @property
  def options(self) -> compiling.Options:
    """XLA's options for the step on these devices."""
    return compiling.options(self.mesh.devices.flat[0].device_kind)

  def jit_step(self) -> Any:
    """The training step, to be called or lowered: (state, frozen, batch, key)."""
    cfg = self.run.train
    step = train_step.make_step(
      self.part,
      self.tx,
      accumulate=cfg.accumulate,
      cast_params=cfg.cast_params,
      ema_decay=cfg.ema_decay,
      learning_rate=optimizer.schedule(cfg.optimizer, cfg.steps),
      spikes=cfg.spikes,
    )
    places = jax.tree.map(lambda x: x.sharding, self.abstract)
    whole = sharding.replicated(self.mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, whole))

  def lower_step(self, bucket: int) -> Any:
    """The step lowered for prompts of `bucket` tokens, without arrays and without devices."""
    rows, whole = sharding.batch_sharding(self.mesh), sharding.replicated(self.mesh)
    batch = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows)
      for name, leaf in self.batch_spec(bucket).items()
    }
    key: Any = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
    with jax.set_mesh(self.mesh):
      return self.jit_step().lower(self.abstract, trees.unflatten(self.part.frozen), batch, key)

  def batch_spec(self, bucket: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a global batch whose prompts have `bucket` tokens."""
    return self.system.batch_spec(self.run.model, self.run.train.batch, bucket)

  def flops(self, batch: Mapping[str, Any]) -> float:
    """Operations of a step on a batch {name: anything with a shape}."""
    return float(self.system.flops(self.run.model, batch))


def prepare(run: Run, system: Any, devices: Sequence[jax.Device] | None = None) -> Setup:
  """Sets a run up on `devices`, by default all that there are; allocates nothing.

  Raises:
    ValueError: a source of parameters that is a model of another family, by its name; a mesh that
      the devices do not fill or the system refuses; a batch that the mesh does not divide; patterns
      of trained leaves that match nothing or that the system refuses.
  """
  cfg = run.train
  loading.check(cfg.init_from)

  # ---- 2. mesh -----------------------------------------------------------------------------
  mesh = distributed.make_mesh(cfg.mesh, devices)
  logging.info("mesh %s of %s", dict(mesh.shape), mesh.devices.flat[0].device_kind)

  # ---- 3. data and batch spec --------------------------------------------------------------
  distributed.check_batch(mesh, cfg.batch, cfg.accumulate)

  # ---- 4. abstract model, partition, table of parameters -----------------------------------
  part = train_state.partition(system, run.model, mesh, cfg.trainable, cfg.frozen_dtype)
  part, placed = placement.place(part, mesh, cfg.mesh)
  kind = mesh.devices.flat[0].device_kind
  chosen = f"compiler options for {kind}: {compiling.described(compiling.options(kind))}"
  for line in (*train_state.table(part), *placed, chosen):
    logging.info("%s", line)
  if said := quantized.said(part.leaves, kind):
    logging.info("%s", said)

  # ---- 5. optimiser and shardings ----------------------------------------------------------
  axes = {path: part.axes[path] for path in part.trained}
  tx = optimizer.make(cfg.optimizer, cfg.steps, axes)
  abstract = train_state.abstract_state(
    part,
    tx,
    mesh,
    ema=cfg.ema_decay > 0,
    spikes=cfg.spikes.on,
    on_host=optimizer.on_host(cfg.optimizer, axes),
  )
  return Setup(run, system, mesh, part, tx, abstract, tuple(placed))


def open_data(setup: Setup, cfg: Data, field: str = "data") -> Pipeline:
  """The rows of `cfg`'s batches that the devices of this process hold.

  Args:
    field: of the run's config, for errors.

  Raises:
    FileNotFoundError, ValueError: data or tokenizer that is absent or does not fit; cached features
      that are not of the run's encoder.
  """
  run, system = setup.run, setup.system
  tokenizer = Tokenizer.load(run.tokenizer, system.SPECIAL) if run.tokenizer else None
  made = system.transforms(run.model, cfg, tokenizer)
  source = open_source(cfg, field)
  if cfg.features and cfg.source == "files":
    setup.caches.check(source, cfg)
  return Pipeline(source, made, cfg, setup.rows)


def resumed(setup: Setup, workdir: epath.PathLike) -> Resumed | None:
  """The checkpoint that a run goes on from, see `resume.latest`; None for a fresh one."""
  from_step = setup.run.train.checkpoint.from_step
  return resume.latest(workdir, setup.abstract, setup.mesh, from_step)


def go_on(data: Pipeline, workdir: epath.PathLike, before: Resumed | None) -> None:
  """Puts the data where the checkpoint of a run stood, and says what changed since.

  Raises:
    ValueError: a checkpoint that does not say where, and other batches than the run had; processes
      that read different data.
  """
  _go_on(data, workdir, before)
  distributed.agree("the data", data.fingerprint)


def _go_on(data: Pipeline, workdir: epath.PathLike, before: Resumed | None) -> None:
  """See `go_on`."""
  if before is None:
    return
  record, found = before.record, before.position
  if "order" in found:
    if said := data.resume(found, record["step"]):
      logging.warning("the data changed since step %d: %s", record["step"], said)
    return
  # Of a version that kept the step alone, from which only the same batches can be counted.
  had = record.get("data", {}) | {"batch": record["train"].get("batch", data.cfg.batch)}
  fields = ("batch", "seed", "shuffle", "buckets", "records", "holdout", "split")
  now = {name: getattr(data.cfg, name) for name in fields}
  changed = changes({k: had.get(k, v) for k, v in now.items()}, now)
  where = f"{checkpoint.folder(workdir)}/{record['step']}"
  if changed:
    raise ValueError(
      f"{where}: does not say which records the run has seen (an earlier version wrote it), so it "
      f"cannot go on with {', '.join(changed)}; go on with the values it had, or give the run "
      "another workdir and this one as init_from"
    )
  text = "%s does not say which records the run has seen: taken to be those there are now"
  logging.warning(text, where)


class Compiled:
  """The step and the held-out loss, compiled once for each shape of batch."""

  def __init__(self, setup: Setup, clock: goodput.Clock):
    whole = sharding.replicated(setup.mesh)
    self._cache: dict[Any, Any] = {}
    self.options = setup.options
    self.clock = clock
    make_key = jax.jit(train_state.named_key, static_argnums=(0, 1), out_shardings=whole)
    seed = setup.run.train.seed
    self.key, self.eval_key = make_key(seed, "train"), make_key(seed, "eval")
    self._step = setup.jit_step()
    self._evaluate = jax.jit(train_step.make_evaluate(setup.part), out_shardings=whole)
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
      with self.clock.spent("compile"):
        lowered = function.lower(*args)
        self._cache[key] = lowered.compile(compiler_options=self.options or None)
      shapes = ", ".join(f"{k} {t}{list(s)}" for k, (s, t) in spec.items())
      seconds = time.monotonic() - began
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


def first_state(
  setup: Setup, workdir: epath.PathLike, before: Resumed | None
) -> tuple[TrainState, Params, list[loading.Source]]:
  """The first train state, the frozen leaves, and the sources that the run rests on.

  Order: 1. `before`, what `resumed` gave (frozen leaves: from the sources it names). 2. init_from,
  the later entry wins. 3. Random numbers, for trained leaves only.

  Raises:
    ValueError: frozen leaves that no source fills (all listed), and whatever does not fit.
    FileNotFoundError: a source that is not there.
  """
  if before is not None:
    return _resumed(setup, workdir, before)
  run, part = setup.run, setup.part
  used = loading.resolve(run.train.init_from)
  filled, left = loading.fill(setup.system, run.model, used, part.leaves, part.leaves)
  frozen = _frozen(part, filled, used)
  fresh = {path: leaf for path, leaf in left.items() if path in part.trained}
  logging.info("parameters: %d leaves are random, seed %d", len(fresh), run.train.seed)
  filled |= train_state.fresh_params(setup.system, run.model, run.train.seed, fresh)
  params = trees.unflatten({path: filled[path] for path in part.trained})
  return train_state.start(setup.abstract, setup.tx, params, setup.mesh), frozen, used


def _resumed(
  setup: Setup, workdir: epath.PathLike, before: Resumed
) -> tuple[TrainState, Params, list[loading.Source]]:
  part, record = setup.part, before.record
  logging.info("parameters: resuming from step %d in %s", record["step"], workdir)
  now = config.to_dict(setup.run)
  for group in now:
    had = record.get(group, now[group])  # an earlier version has not all of them
    for line in changes({group: had}, {group: now[group]}):
      logging.warning("config changed since the run began: %s", line.removeprefix("train."))
  found = starts.facts(setup.mesh)
  for line in changes(record.get("start", found), found):
    logging.warning("changed since step %d was saved: %s", record["step"], line)
  used = loading.recorded(workdir, record)
  filled, _ = loading.fill(setup.system, setup.run.model, used, part.frozen, part.leaves)
  return before.state, _frozen(part, filled, used), used


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Fields of two nested configs that differ, as "optimizer.lr 0.1 -> 0.2"; lists equal tuples."""

  def plain(value: Any) -> Any:
    if isinstance(value, Mapping):  # of a list; others are flattened
      return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value

  old, new = trees.flatten(before), trees.flatten(now)
  return [
    f"{path.replace('/', '.')} {old.get(path, 'absent')} -> {plain(new.get(path, 'absent'))}"
    for path in old | new
    if plain(old.get(path)) != plain(new.get(path))
  ]


def _frozen(
  part: Partition, filled: Mapping[str, jax.Array], used: Sequence[loading.Source]
) -> Params:
  """The frozen leaves as a nested dict; raises ValueError with the list of those not filled."""
  left = [path for path in part.frozen if path not in filled]
  if left:
    shown = left[:40] + [f"... and {len(left) - 40} more"] * (len(left) > 40)
    where = ", ".join(map(str, used)) or "it is empty"
    raise ValueError(
      f"{len(left)} frozen parameters are in none of init_from ({where}):\n  " + "\n  ".join(shown)
    )
  return trees.unflatten({path: filled[path] for path in part.frozen})
