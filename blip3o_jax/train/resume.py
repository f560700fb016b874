"""Which checkpoint a run goes on from: the newest that is whole, or the one that it is told.

What is not gone on from is set aside under another name, never deleted, and only once another one
was read.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
import shutil
from typing import Any

from absl import logging
from etils import epath
import jax

from blip3o_jax.train import agreement
from blip3o_jax.train import checkpoint
from blip3o_jax.train.damage import DamagedError
from blip3o_jax.train.state import TrainState

SOON = 100  # steps after a resume in which a stop makes its checkpoint suspect


@dataclasses.dataclass(frozen=True)
class Resumed:
  """What a checkpoint held: the state, the record, the position in the data."""

  state: TrainState
  record: dict[str, Any]
  position: dict[str, Any]


def latest(
  workdir: epath.PathLike, abstract: TrainState, mesh: jax.sharding.Mesh, from_step: int = 0
) -> Resumed | None:
  """The newest whole checkpoint of a run; all its processes must call this. None: it has none.

  Args:
    from_step: see `checkpoint.Checkpoint`.

  Raises:
    FileNotFoundError: no checkpoint of `from_step`. DamagedError: none is whole; nothing was moved.
    ValueError: a checkpoint that does not fit the config.
  """
  present = agreement.of_primary(checkpoint.steps(workdir))
  if not present and not from_step:
    return None
  candidates, given_up = _choose(workdir, present, from_step)
  errors: dict[int, DamagedError] = {}
  for step in candidates:
    try:
      found = _read(workdir, step, abstract, mesh)
    except DamagedError as error:
      logging.error("the checkpoint of step %d is damaged: %s", step, error)
      errors[step] = error
      continue
    if errors:
      text = "going on from step %d, the newest checkpoint that is whole; %s set aside"
      logging.error(text, step, ", ".join(map(str, errors)))
    _set_aside(workdir, "damaged", list(errors))
    if given_up:
      logging.warning("going back to step %d; the checkpoints of %s are set aside", step, given_up)
      _keep_metrics(workdir, given_up[-1])
    _set_aside(workdir, "given_up", given_up)
    return found
  raise next(iter(errors.values()))


def _choose(
  workdir: epath.PathLike, present: list[int], from_step: int
) -> tuple[list[int], list[int]]:
  """The steps to try, best first, and those to give up."""
  if not from_step:
    return present[::-1], []
  newer = [step for step in present if step > from_step]
  own = agreement.of_primary([s for s in newer if _came_from(workdir, s) == from_step])
  if own:
    text = "checkpoint.from_step %d: done before; going on from the checkpoints since"
    logging.warning(text, from_step)
  elif from_step not in present:
    where = checkpoint.folder(workdir)
    raise FileNotFoundError(
      f"config.checkpoint.from_step: {where} has no checkpoint of step {from_step}, "
      f"only of {present}"
    )
  base = [from_step] if from_step in present else []
  return own[::-1] + base, [step for step in newer if step not in own]


def _came_from(workdir: epath.PathLike, step: int) -> int:
  """The `from_step` of the run that wrote a checkpoint; -1 where that cannot be read."""
  try:
    train = checkpoint.read_record(workdir, step).get("train", {})
    return int(train.get("checkpoint", {}).get("from_step", 0))
  except (ValueError, OSError):
    return -1


def _read(
  workdir: epath.PathLike, step: int, abstract: TrainState, mesh: jax.sharding.Mesh
) -> Resumed:
  record = checkpoint.read_record(workdir, step)
  position = checkpoint.read_position(workdir, step)
  return Resumed(checkpoint.restore_state(workdir, step, abstract, mesh), record, position)


def _set_aside(workdir: epath.PathLike, why: str, steps: Sequence[int]) -> None:
  """Renames checkpoints, which then are none: neither offered nor deleted."""
  if jax.process_index() == 0:
    for step in sorted(steps, reverse=True):  # the newest first: a kill in between leaves no gap
      path = checkpoint.folder(workdir) / str(step)
      path.rename(_free(path.with_name(f"{why}-{step}")))
  agreement.first("")  # nobody lists the folder before that


def _keep_metrics(workdir: epath.PathLike, step: int) -> None:
  """A copy of the lines that going back drops."""
  file = Path(os.fspath(workdir)) / "metrics.jsonl"
  if jax.process_index() == 0 and file.exists():
    shutil.copyfile(file, _free(file.with_name(f"metrics.given_up-{step}.jsonl")))


def _free(path: Any) -> Any:
  """The path, or one with a number behind it that is not taken."""
  out, count = path, 1
  while out.exists():
    count += 1
    out = path.with_name(f"{path.stem}-{count}{path.suffix}")
  return out


def advice(workdir: epath.PathLike, bad: int, first: int) -> str:
  """What to do about a loss that went bad at step `bad` in a run that began at step `first`."""
  present = checkpoint.steps(workdir)
  if not present:
    return "No checkpoint was saved. Lower optimizer.lr, or look at the batch of that step"
  where = f"Last checkpoint: step {present[-1]} in {checkpoint.folder(workdir)}"
  suspect = first if first and (bad - first < SOON or present[-1] == first) else 0
  before = [step for step in present if step < (suspect or present[-1])]
  back = f"--config.checkpoint.from_step={before[-1]}" if before else ""
  if suspect:
    way = f"go on from the one before with {back}" if back else "there is none before it"
    return (
      f"{where}. This run went on from step {suspect} only {bad - suspect} steps before, so that "
      f"checkpoint may be the cause: {way}"
    )
  way = f" (or go back to the one before it: {back})" if back else ""
  return (
    f"{where}; it is finite, but may be the cause itself{way}. Lower optimizer.lr, or look at "
    "the batch of that step"
  )
