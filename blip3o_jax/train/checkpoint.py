"""Checkpoints of a run: trained leaves, optimiser, average, and a JSON record. Orbax, asynchronous.

A run directory holds `checkpoints/<step>/` with the items `params`, `opt`, `ema` and `spikes` (when
on), `step` (JSON: format version, configs, the sources of frozen leaves, and of every leaf dtype,
shape and checksum) and `data` (JSON: the position, see `data.pipeline.Pipeline.position`).
On disk every tree is nested dicts with string keys. Frozen leaves are never written. Folders of
another name than a step's (`resume` makes them) are left alone.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import types
from typing import Any
from typing import Literal

from etils import epath
import jax
import numpy as np

from blip3o_jax import trees
from blip3o_jax.train import agreement
from blip3o_jax.train import checksums
from blip3o_jax.train import damage
from blip3o_jax.train import state as train_state
from blip3o_jax.train.damage import DamagedError
from blip3o_jax.train.damage import SaveError
from blip3o_jax.train.state import Leaves
from blip3o_jax.train.state import TrainState

FORMAT_VERSION = 1
FOLDER = "checkpoints"
Item = Literal["params", "ema"]
NOWHERE: Mapping[str, Any] = types.MappingProxyType({})


def _orbax() -> Any:
  """Here, so that who draws a picture does not wait for it: it takes .3 s to import."""
  import orbax.checkpoint

  return orbax.checkpoint


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When a run saves; it also saves at its end and once on SIGTERM.

  Attributes:
    every_steps: 0 is off. every_minutes: looked at whenever a line is logged; 0 is off.
    keep: how many of the latest stay. keep_every: steps divisible by it stay for good; 0 is off.
    from_step: go on from this step, not from the latest, and set the later ones aside; 0 is off.
      Those that the run writes after it has gone back are its own: a restart goes on from them.
  """

  every_steps: int = 1000
  every_minutes: float = 0.0
  keep: int = 3
  keep_every: int = 0
  from_step: int = 0

  def __post_init__(self) -> None:
    if self.keep < 1:
      raise ValueError(f"checkpoint.keep {self.keep}: expected at least 1")
    for name in ("every_steps", "every_minutes", "keep_every", "from_step"):
      if getattr(self, name) < 0:
        raise ValueError(f"checkpoint.{name} {getattr(self, name)}: expected 0 (off) or more")


class Writer:
  """Saves train states of one run; the call returns while the files are still being written.

  Every method raises SaveError once a save has failed, be it in the background.

  Args:
    workdir: of the run. record: JSON-ready facts for the `step` item (configs, sources).
  """

  def __init__(self, workdir: epath.PathLike, cfg: Checkpoint, record: Mapping[str, Any]):
    self.record = dict(record)
    self.last = max(steps(workdir), default=-1)
    self._workdir, self._failed = workdir, False
    ocp = _orbax()
    self._manager = ocp.CheckpointManager(
      epath.Path(workdir).absolute() / FOLDER,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=cfg.keep,
        keep_period=cfg.keep_every or None,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
      ),
    )

  def save(self, state: TrainState, position: Mapping[str, Any] = NOWHERE) -> None:
    """Saves one state (once a step); its buffers may be donated as soon as this returns.

    Args:
      position: of the run in its data, JSON-ready.
    """
    step = int(state.step)
    if step == self.last:
      return
    before, self.last = self.last, step
    data = {"position": step, **position}
    record = {"format_version": FORMAT_VERSION, "step": step, **self.record}
    record |= {"leaves": _described(state), "data_sum": checksums.of_json(data)}
    args = _orbax().args
    items: dict[str, Any] = {
      name: args.PyTreeSave(to_disk(tree)) for name, tree in _items(state).items()
    }
    items["step"] = args.JsonSave(record | {"sum": checksums.of_json(record)})
    items["data"] = args.JsonSave(data)
    with self._telling(before):
      if not self._manager.save(step, args=args.Composite(**items), force=True):
        raise ValueError("the checkpoint library refused this step")

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def check(self) -> None:
    """Raises what a background write raised, as far as it has come; waits for nothing."""
    if not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns when everything is on disk."""
    with self._telling(self.last):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the directory; says nothing again that was raised before."""
    try:
      self._manager.close()
    except Exception as error:
      if not self._failed:
        raise self._save_error(self.last, error) from error

  @contextlib.contextmanager
  def _telling(self, step: int) -> Iterator[None]:
    """Turns what the checkpoint library raises, of a save of `step`, into one line."""
    try:
      yield
    except Exception as error:
      self._failed = True
      raise self._save_error(step, error) from error

  def _save_error(self, step: int, error: Exception) -> SaveError:
    whole = [s for s in steps(self._workdir) if s != step]
    return damage.unwritten(folder(self._workdir) / str(step), error, whole)


def to_disk(tree: Any) -> dict[str, Any]:
  """Any pytree as nested dicts with string keys, named by its paths."""
  out: dict[str, Any] = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    *parents, last = _name(keys).split("/")
    node = out
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = leaf
  return out


def _items(state: TrainState) -> dict[str, Any]:
  """The trees of a state that a checkpoint holds, by item."""
  more = {"ema": state.ema, "spikes": state.spikes}
  return {"params": state.params, "opt": state.opt} | {k: v for k, v in more.items() if v}


def _described(state: TrainState) -> dict[str, dict[str, list[Any]]]:
  """{item: {path: [dtype, shape, checksum]}} of what a checkpoint of a state holds."""
  out: dict[str, dict[str, list[Any]]] = {}
  for item, tree in _items(state).items():
    leaves = _flat(tree)
    sums = checksums.of_arrays(leaves)
    out[item] = {p: [str(x.dtype), list(x.shape), sums[p]] for p, x in leaves.items()}
  return out


def _name(keys: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def folder(run: epath.PathLike) -> epath.Path:
  """The checkpoint folder of a run directory (or that folder itself)."""
  path = epath.Path(run).absolute()
  return path if path.name == FOLDER else path / FOLDER


def is_run(path: epath.PathLike) -> bool:
  """Whether a directory is of a run that may hold checkpoints."""
  return folder(path).is_dir()


def steps(run: epath.PathLike) -> list[int]:
  """The steps of the complete checkpoints of a run, ascending; [] when there are none."""
  found = _orbax().utils.checkpoint_steps_paths(folder(run)) if is_run(run) else []
  return sorted(int(path.name) for path in found if path.name.isdigit())


def read_record(run: epath.PathLike, step: int = -1) -> dict[str, Any]:
  """The record of a checkpoint (-1: the latest): step, configs, sources, leaves.

  Raises:
    FileNotFoundError: no complete checkpoint, or none of this step.
    DamagedError: a record that is not what was written.
    ValueError: one written by a newer version of this package.
  """
  path = _step_path(run, step)
  record = _read_json(run, path, "step")
  try:
    version = int(record["format_version"])
    known = record.pop("sum", "")
  except Exception as error:
    raise _unreadable(run, path, "step", error) from error
  if version > FORMAT_VERSION:
    raise ValueError(
      f"{path}: format_version {version} is newer than {FORMAT_VERSION}, the newest that this "
      "package reads; use a newer blip3o_jax"
    )
  if ("leaves" in record or known) and known != checksums.of_json(record):
    raise _damaged(run, path, "step", "its checksum does not fit")
  return record


def read_position(run: epath.PathLike, step: int = -1) -> dict[str, Any]:
  """Where a run stood in its data at a checkpoint; raises like `read_record`."""
  known, path = read_record(run, step).get("data_sum"), _step_path(run, step)
  found = _read_json(run, path, "data")
  if known and known != checksums.of_json(found):
    raise _damaged(run, path, "data", "its checksum does not fit")
  return found


def _read_json(run: epath.PathLike, path: epath.Path, item: str) -> dict[str, Any]:
  try:
    ocp = _orbax()
    return ocp.JsonCheckpointHandler().restore(path / item, args=ocp.args.JsonRestore())  # type: ignore[no-any-return]
  except Exception as error:
    raise _unreadable(run, path, item, error) from error


def restore_params(
  run: epath.PathLike, abstract: Leaves, *, item: Item = "params", step: int = -1
) -> dict[str, jax.Array]:
  """Those of the leaves of `abstract` that a run trained: {path: array}.

  Args:
    run: run directory. abstract: {path: ShapeDtypeStruct with sharding}; a checkpoint of any mesh
      restores onto any other, in the dtype asked for.
    item: "params" or their average "ema". step: -1 is the latest.

  Raises:
    FileNotFoundError: no such checkpoint or item.
    ValueError: a leaf of another shape, a newer format. DamagedError: bytes that are not what was
      written.
  """
  record, path = read_record(run, step), _step_path(run, step)
  stored = _open(run, path, item, record)
  wanted = {p: leaf for p, leaf in abstract.items() if p in stored}
  faults = trees.diff(wanted, {p: stored[p] for p in wanted})
  if faults:
    raise ValueError(f"{path / item} does not fit the model:\n  " + "\n  ".join(faults))
  return _read(run, path, item, wanted, record) if wanted else {}


def held(run: epath.PathLike, *, item: Item = "params", step: int = -1) -> set[str]:
  """The paths that an item of a checkpoint holds; raises like `restore_params`."""
  return set(stored(run, item=item, step=step))


def stored(run: epath.PathLike, *, item: Item = "params", step: int = -1) -> dict[str, Any]:
  """{path: .shape and .dtype} of what an item holds; raises like `restore_params`."""
  return _open(run, _step_path(run, step), item, read_record(run, step))


def restore_state(
  run: epath.PathLike, step: int, abstract: TrainState, mesh: jax.sharding.Mesh
) -> TrainState:
  """The whole train state of a checkpoint, onto the shardings of `abstract`.

  Raises:
    FileNotFoundError: no such checkpoint.
    DamagedError: an item that is missing, or bytes that are not what was written.
    ValueError: leaves missing, unexpected or of another shape (all listed), a newer format.
  """
  record, path = read_record(run, step), _step_path(run, step)
  parts = _items(abstract)
  if not (path / "spikes").is_dir():  # the run did not skip any until now
    parts.pop("spikes", None)
  flat = {item: _flat(tree) for item, tree in parts.items()}
  faults = []
  for item, leaves in flat.items():
    # Without a record of the leaves (earlier versions), what is missing may be a changed config.
    known = item in record["leaves"] if "leaves" in record else (path / item).is_dir()
    shapes = _open(run, path, item, record) if known else {}
    faults += [f"{item}: {line}" for line in trees.diff(leaves, shapes)]
  if faults:
    raise ValueError(
      f"{path} does not fit this run's model and optimizer; give the run another workdir, or undo "
      "the change of its config:\n  " + "\n  ".join(faults)
    )
  out = {}
  for item, tree in parts.items():
    found = _read(run, path, item, flat[item], record)
    arrays = [found[_name(keys)] for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
    out[item] = jax.tree.unflatten(jax.tree.structure(tree), arrays)
  number = train_state.scalar(int(record["step"]), mesh)
  seen = out.get("spikes") or train_state.zeros(abstract.spikes)
  return TrainState(
    number, out["params"], out["opt"], out.get("ema", {}), train_state.scalar(-1, mesh), seen
  )


def _open(
  run: epath.PathLike, path: epath.Path, item: str, record: Mapping[str, Any]
) -> dict[str, Any]:
  """{path: metadata with .shape and .dtype} of an item, which is as the record says."""
  known = record.get("leaves")
  if not (path / item).is_dir():
    if known and item in known:
      raise _damaged(run, path, item, "it is missing, though it was written")
    raise FileNotFoundError(f"{path}: has no item {item!r}; it holds {_listing(path)}")
  try:
    # Of the handler: a Checkpointer looks for a step's metadata in the item too, and warns.
    found = trees.flatten(_orbax().PyTreeCheckpointHandler().metadata(path / item).tree)
    shapes = {p: [str(np.dtype(x.dtype)), list(x.shape)] for p, x in found.items()}
  except Exception as error:
    raise _unreadable(run, path, item, error) from error
  if known and shapes != {p: each[:2] for p, each in known[item].items()}:
    raise _damaged(run, path, item, "its leaves are not those that were written")
  return found


def _flat(tree: Any) -> dict[str, Any]:
  return {_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _step_path(run: epath.PathLike, step: int) -> epath.Path:
  present = steps(run)
  if not present:
    raise FileNotFoundError(f"{folder(run)}: holds no complete checkpoint")
  if step >= 0 and step not in present:
    raise FileNotFoundError(f"{folder(run)}: no checkpoint of step {step}, only of {present}")
  return folder(run) / str(present[-1] if step < 0 else step)


def _listing(path: epath.Path) -> str:
  return ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir()))


def _read(
  run: epath.PathLike, path: epath.Path, item: str, leaves: Leaves, record: Mapping[str, Any]
) -> dict[str, Any]:
  """{path: array} of leaves that the item holds; all processes of a run must call this."""
  known = record.get("leaves", {}).get(item, {})
  as_stored = {  # the checksum is of what was written, so the dtype changes after it
    p: jax.ShapeDtypeStruct(x.shape, known[p][0] if known else x.dtype, sharding=x.sharding)
    for p, x in leaves.items()
  }
  target = to_disk(trees.unflatten(as_stored))
  ocp = _orbax()
  args = ocp.args.PyTreeRestore(
    target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  found: dict[str, Any] = {}
  fault: Exception | None = None
  try:
    # Of the handler: a Checkpointer would wait for processes that could not read their shards.
    found = trees.flatten(ocp.PyTreeCheckpointHandler().restore(path / item, args=args))
  except Exception as error:
    fault = _unreadable(run, path, item, error)
  if said := agreement.first(str(fault) if fault else ""):
    raise fault or DamagedError(said)
  if known:
    sums = checksums.of_arrays(found)
    changed = [p for p in found if sums[p] != known[p][2]]
    why = f"the checksums of {damage.some(changed)} do not fit" if changed else ""
    if why := agreement.first(why):
      raise _damaged(run, path, item, why)
  return {p: found.pop(p).astype(leaf.dtype) for p, leaf in leaves.items()}


def _damaged(run: epath.PathLike, path: epath.Path, item: str, why: str) -> DamagedError:
  return damage.damaged(path, item, why, _others(run, path))


def _unreadable(run: epath.PathLike, path: epath.Path, item: str, error: Exception) -> Exception:
  return damage.unreadable(path, item, error, _others(run, path))


def _others(run: epath.PathLike, path: epath.Path) -> list[int]:
  return [s for s in steps(run) if str(s) != path.name]
