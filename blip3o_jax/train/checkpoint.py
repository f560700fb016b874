"""Checkpoints of a run: trained leaves, optimiser, average, and a JSON record. Orbax, asynchronous.

A run directory holds `checkpoints/<step>/` with the items `params`, `opt`, `ema` and `spikes` (when
on), `step` (JSON: format version, configs, the sources of frozen leaves) and `data` (JSON: the
position, see `data.pipeline.Pipeline.position`).
On disk every tree is nested dicts with string keys. Frozen leaves are never written.
"""

from collections.abc import Mapping
import dataclasses
import types
from typing import Any
from typing import Literal

from etils import epath
import jax
import orbax.checkpoint as ocp

from blip3o_jax import trees
from blip3o_jax.train import state as train_state
from blip3o_jax.train.state import Leaves
from blip3o_jax.train.state import TrainState

FORMAT_VERSION = 1
FOLDER = "checkpoints"
Item = Literal["params", "ema"]
NOWHERE: Mapping[str, Any] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """When a run saves; it also saves at its end and once on SIGTERM.

  Attributes:
    every_steps: 0 is off. every_minutes: looked at whenever a line is logged; 0 is off.
    keep: how many of the latest stay. keep_every: steps divisible by it stay for good; 0 is off.
  """

  every_steps: int = 1000
  every_minutes: float = 0.0
  keep: int = 3
  keep_every: int = 0

  def __post_init__(self) -> None:
    if self.keep < 1:
      raise ValueError(f"checkpoint.keep {self.keep}: expected at least 1")
    for name in ("every_steps", "every_minutes", "keep_every"):
      if getattr(self, name) < 0:
        raise ValueError(f"checkpoint.{name} {getattr(self, name)}: expected 0 (off) or more")


class Writer:
  """Saves train states of one run; the call returns while the files are still being written.

  Args:
    workdir: of the run. record: JSON-ready facts for the `step` item (configs, sources).
  """

  def __init__(self, workdir: epath.PathLike, cfg: Checkpoint, record: Mapping[str, Any]):
    self.record = dict(record)
    self.last = max(steps(workdir), default=-1)
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
    items: dict[str, Any] = {
      name: ocp.args.PyTreeSave(to_disk(tree)) for name, tree in _items(state).items()
    }
    items["step"] = ocp.args.JsonSave(
      {"format_version": FORMAT_VERSION, "step": step, **self.record}
    )
    items["data"] = ocp.args.JsonSave({"position": step, **position})
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    self.last = step

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def wait(self) -> None:
    """Returns when everything is on disk; raises what a background write raised."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the directory."""
    self._manager.close()


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
  return sorted(ocp.utils.checkpoint_steps(folder(run))) if is_run(run) else []


def read_record(run: epath.PathLike, step: int = -1) -> dict[str, Any]:
  """The record of a checkpoint (-1: the latest): step, configs, sources.

  Raises:
    FileNotFoundError: no complete checkpoint, or none of this step.
    ValueError: a damaged record, or one written by a newer version of this package.
  """
  path = _step_path(run, step)
  record = _read_json(run, path, "step")
  try:
    version = int(record["format_version"])
  except Exception as error:
    raise _damaged(run, path, "step", error) from error
  if version > FORMAT_VERSION:
    raise ValueError(
      f"{path}: format_version {version} is newer than {FORMAT_VERSION}, the newest that this "
      "package reads; use a newer blip3o_jax"
    )
  return record


def read_position(run: epath.PathLike, step: int = -1) -> dict[str, Any]:
  """Where a run stood in its data at a checkpoint; raises like `read_record`."""
  return _read_json(run, _step_path(run, step), "data")


def _read_json(run: epath.PathLike, path: epath.Path, item: str) -> dict[str, Any]:
  try:
    handler = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    return handler.restore(path / item, args=ocp.args.JsonRestore())
  except Exception as error:
    raise _damaged(run, path, item, error) from error


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
    ValueError: a leaf of another shape, a damaged file, a newer format.
  """
  path, stored = _open(run, item, step)
  wanted = {p: leaf for p, leaf in abstract.items() if p in stored}
  faults = trees.diff(wanted, {p: stored[p] for p in wanted})
  if faults:
    raise ValueError(f"{path / item} does not fit the model:\n  " + "\n  ".join(faults))
  found = _read(run, path, item, wanted) if wanted else {}
  return {p: found[p] for p in wanted}


def held(run: epath.PathLike, *, item: Item = "params", step: int = -1) -> set[str]:
  """The paths that an item of a checkpoint holds; raises like `restore_params`."""
  return set(stored(run, item=item, step=step))


def stored(run: epath.PathLike, *, item: Item = "params", step: int = -1) -> dict[str, Any]:
  """{path: .shape and .dtype} of what an item holds; raises like `restore_params`."""
  return _open(run, item, step)[1]


def restore_state(
  run: epath.PathLike, step: int, abstract: TrainState, mesh: jax.sharding.Mesh
) -> TrainState:
  """The whole train state of a checkpoint, onto the shardings of `abstract`.

  Raises:
    FileNotFoundError: no such checkpoint.
    ValueError: leaves missing, unexpected or of another shape (all listed), a damaged file, a
      newer format.
  """
  record, path = read_record(run, step), _step_path(run, step)
  parts = _items(abstract)
  if not (path / "spikes").is_dir():  # the run did not skip any until now
    parts.pop("spikes", None)
  flat = {item: _flat(tree) for item, tree in parts.items()}
  faults = []
  for item, leaves in flat.items():
    stored = _shapes(run, path, item) if (path / item).is_dir() else {}
    faults += [f"{item}: {line}" for line in trees.diff(leaves, stored)]
  if faults:
    raise ValueError(
      f"{path} does not fit this run's model and optimizer; give the run another workdir, or undo "
      "the change of its config:\n  " + "\n  ".join(faults)
    )
  out = {}
  for item, tree in parts.items():
    found = _read(run, path, item, flat[item])
    arrays = [found[_name(keys)] for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
    out[item] = jax.tree.unflatten(jax.tree.structure(tree), arrays)
  number = train_state.scalar(int(record["step"]), mesh)
  seen = out.get("spikes") or train_state.zeros(abstract.spikes)
  return TrainState(
    number, out["params"], out["opt"], out.get("ema", {}), train_state.scalar(-1, mesh), seen
  )


def _open(run: epath.PathLike, item: str, step: int) -> tuple[epath.Path, dict[str, Any]]:
  read_record(run, step)
  path = _step_path(run, step)
  if not (path / item).is_dir():
    raise FileNotFoundError(f"{path}: has no item {item!r}; it holds {_listing(path)}")
  return path, _shapes(run, path, item)


def _flat(tree: Any) -> Leaves:
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


def _shapes(run: epath.PathLike, path: epath.Path, item: str) -> dict[str, Any]:
  """{path: metadata with .shape} of a stored item."""
  try:
    # Of the handler: a Checkpointer looks for a step's metadata in the item too, and warns.
    return trees.flatten(ocp.PyTreeCheckpointHandler().metadata(path / item).tree)
  except Exception as error:
    raise _damaged(run, path, item, error) from error


def _read(run: epath.PathLike, path: epath.Path, item: str, leaves: Leaves) -> dict[str, Any]:
  """{path: array} of leaves that the stored item holds in these shapes."""
  target = to_disk(trees.unflatten(leaves))
  args = ocp.args.PyTreeRestore(
    target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  try:
    tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path / item, args=args)
  except Exception as error:
    raise _damaged(run, path, item, error) from error
  return trees.flatten(tree)


def _damaged(run: epath.PathLike, path: epath.Path, item: str, error: Exception) -> ValueError:
  others = [s for s in steps(run) if str(s) != path.name]
  hint = f"; delete {path} to go on from step {others[-1]}" if others else ""
  text = " ".join(str(error).split())[:300]
  return ValueError(
    f"{path}: item {item!r} is missing, truncated or damaged ({type(error).__name__}: {text}){hint}"
  )
