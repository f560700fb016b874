"""Numbers and pictures of a run: metrics.jsonl, TensorBoard, a progress bar or plain lines.

Knows names and arrays. Process 0 writes; the others are silent.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import logging as std_logging
import sys
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from blip3o_jax import chips
from blip3o_jax.train import damage
from blip3o_jax.train import lines

Value = float | list[float]
LAST = (
  "lr",
  "param_norm",
  "skipped",
)  # of these the latest is logged, not the mean since the last line


@dataclasses.dataclass(frozen=True)
class Log:
  """When a run reports, in steps.

  Attributes:
    every: a line of metrics; the only time when the host waits for the device.
    eval_every: held-out loss, over `eval_batches` batches; 0 is off.
    samples_every: a grid of samples; 0 is off. Both are also made at the last step.
    tensorboard: write TensorBoard files beside metrics.jsonl.
    record_ids: each process writes which records it trained on, records/process_N.jsonl.
  """

  every: int = 100
  eval_every: int = 0
  eval_batches: int = 8
  samples_every: int = 0
  tensorboard: bool = True
  record_ids: bool = False

  def __post_init__(self) -> None:
    if self.every < 1:
      raise ValueError(f"log.every {self.every}: expected at least 1")
    for name in ("eval_every", "samples_every"):
      if getattr(self, name) < 0:
        raise ValueError(f"log.{name} {getattr(self, name)}: expected 0 (off) or more")
    if self.eval_every and self.eval_batches < 1:
      raise ValueError(f"log.eval_batches {self.eval_batches}: expected at least 1")


def due(step: int, every: int, last: int) -> bool:
  """Whether something that happens `every` steps (0: never) happens after `step` of `last`."""
  return every > 0 and (step % every == 0 or step == last)


def reduce(history: Sequence[Mapping[str, jax.Array]]) -> dict[str, Value]:
  """Means over steps as floats, but the last of `LAST`.

  "x/sum" and "x/count" become their quotient "x"; bins that saw nothing are NaN. One transfer from
  the device for all of them.
  """
  rows = jax.device_get(list(history))
  out: dict[str, Value] = {}
  for name in rows[0]:
    values = np.stack([np.asarray(r[name], np.float64) for r in rows])
    if name.endswith("/count"):
      continue
    if name.endswith("/sum"):
      stem = name.removesuffix("/sum")
      count = np.sum([np.asarray(r[f"{stem}/count"], np.float64) for r in rows], 0)
      with np.errstate(invalid="ignore", divide="ignore"):
        out[stem] = (values.sum(0) / count).tolist()
    else:
      out[name] = (values[-1] if name in LAST else values.mean(0)).tolist()
  return out


def rates(
  samples: int, flops: float, seconds: float, devices: Sequence[jax.Device]
) -> dict[str, Value]:
  """How fast steps were: of the whole run, and for each of the (equal) devices.

  Args:
    samples, flops: of these steps; the operations by the system's formula, nothing that is
      recomputed among them, or 0. seconds: that they took, waits for data among them.

  Returns:
    `mfu`, the share of the peak in bfloat16, only for devices that the table of chips has.
  """
  out: dict[str, Value] = {
    "images_per_second": samples / seconds,
    "samples_per_second_per_device": samples / seconds / len(devices),
  }
  if flops:
    rate = flops / seconds / len(devices)
    out["model_tflops_per_second_per_device"] = rate / 1e12
    if peak := chips.peak(devices):
      out["mfu"] = rate / peak
  return out


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
  """Keeps what the checkpoint library says (some 80 lines a save, tracebacks) out of the log."""

  def wanted(record: std_logging.LogRecord) -> bool:
    # Errors too: what fails there is raised, and said in one line.
    return "orbax" not in record.pathname or record.levelno == std_logging.WARNING

  logger, loops = logging.get_absl_logger(), std_logging.getLogger("asyncio")
  logger.addFilter(wanted)
  loops.addFilter(damage.not_late)
  before, sys.unraisablehook = sys.unraisablehook, damage.quietly
  try:
    yield
  finally:
    logger.removeFilter(wanted)
    if sys.exc_info()[0] is None:  # else writes may still end, each with a traceback of its own
      sys.unraisablehook = before
      loops.removeFilter(damage.not_late)


class Writer:
  """metrics.jsonl, TensorBoard files and PNGs in a run's directory.

  Args:
    workdir: of the run. start: the step it continues from; later lines of an earlier, interrupted
      run are dropped. steps: of the whole run. tensorboard: also write TensorBoard files.
  """

  def __init__(self, workdir: epath.PathLike, start: int, steps: int, *, tensorboard: bool = True):
    self.workdir, self.steps = epath.Path(workdir), steps
    self.primary = jax.process_index() == 0
    self._board: Any = None
    self._bar: Any = None
    if not self.primary:
      return
    self._path = self.workdir / "metrics.jsonl"
    lines.keep(self._path, start)
    if tensorboard:
      from tensorboardX import SummaryWriter  # imports torch, where there is one

      self._board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start + 1)
    if sys.stderr.isatty():
      self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)
    self._began, self._start = time.monotonic(), start

  def advance(self, step: int) -> None:
    """Moves the progress bar to `step`; nothing off a terminal."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def scalars(self, step: int, values: Mapping[str, Value]) -> None:
    """One line of metrics.jsonl (time: Unix seconds), TensorBoard scalars, a line for people."""
    if not self.primary:
      return
    with self._path.open("a") as file:
      line = {"step": step, "time": round(time.time(), 1), **_finite(values)}
      file.write(json.dumps(line) + "\n")
    flat = {k: v for k, v in values.items() if isinstance(v, float)}
    if self._board is not None:
      bins = {
        f"{k}/{i}": x for k, v in values.items() if isinstance(v, list) for i, x in enumerate(v)
      }
      for name, value in (flat | bins).items():
        if np.isfinite(value):
          self._board.add_scalar(name, value, step)
    text = "  ".join(f"{k} {v:.4g}" for k, v in flat.items() if not k.startswith("seconds/"))
    if self._bar is not None:
      self._bar.set_postfix_str(f"loss {flat['loss']:.4g}" if "loss" in flat else "")
    else:
      logging.info("step %d/%d  %s  left %s", step, self.steps, text, self._left(step))

  def images(self, step: int, name: str, images: np.ndarray) -> None:
    """Writes uint8[n, H, W, 3] as one grid: <name>/step_<n>.png and a TensorBoard image.

    Raises:
      ValueError: images of another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
      raise ValueError(
        f"{name}: expected uint8[n, H, W, 3], got {images.dtype}{list(images.shape)}"
      )
    if not self.primary:
      return
    picture = grid(images)
    path = self.workdir / name / f"step_{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
      Image.fromarray(picture).save(file, "PNG")
    if self._board is not None:
      self._board.add_image(name, picture, step, dataformats="HWC")

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Flushes everything."""
    for part in (self._board, self._bar):
      if part is not None:
        part.close()

  def _left(self, step: int) -> str:
    """Time to the last step at the speed so far, as h:mm:ss."""
    done = max(step - self._start, 1)
    seconds = int((time.monotonic() - self._began) / done * (self.steps - step))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class RecordIds:
  """records/process_N.jsonl of a run: which records stood in which rows of each step's batch.

  Args:
    workdir: of the run. start: the step it continues from; later lines of an interrupted run are
      dropped. rows: of the global batch that this process loads.
  """

  def __init__(self, workdir: epath.PathLike, start: int, rows: Sequence[int]):
    self._path = epath.Path(workdir) / "records" / f"process_{jax.process_index()}.jsonl"
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._rows = list(rows)
    lines.keep(self._path, start)

  def write(self, step: int, records: Sequence[int]) -> None:
    """One line: the step, counted from 1 as everywhere in a run's files, its rows and records."""
    with self._path.open("a") as file:
      line = {"step": step, "rows": self._rows, "records": list(records)}
      file.write(json.dumps(line) + "\n")


class Quarantine:
  """quarantine/process_N.jsonl of a run: the damaged records that it met, and what stood in.

  A context manager, which writes the last of them.

  Args:
    workdir: of the run. start: the step it continues from; later lines of an interrupted run are
      dropped. found: what was met since it was asked, see `Pipeline.drained`.
  """

  def __init__(
    self, workdir: epath.PathLike, start: int, found: Callable[[], Sequence[Mapping[str, Any]]]
  ):
    self._path = epath.Path(workdir) / "quarantine" / f"process_{jax.process_index()}.jsonl"
    self._found, self._step = found, start
    lines.keep(self._path, start)

  def write(self, step: int) -> None:
    """A line for each record: when it was written down, which it was, its kind of damage, why."""
    self._step = step
    if found := self._found():
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with self._path.open("a") as file:
        file.writelines(json.dumps({"step": step, **each}) + "\n" for each in found)

  def __enter__(self) -> "Quarantine":
    return self

  def __exit__(self, *_: object) -> None:
    self.write(self._step)


def grid(images: np.ndarray, gap: int = 2) -> np.ndarray:
  """uint8[n, H, W, 3] as one near-square picture uint8[h, w, 3] with white gaps."""
  n, h, w, _ = images.shape
  columns = int(np.ceil(np.sqrt(n)))
  rows = -(-n // columns)
  out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
    out[y : y + h, x : x + w] = image
  return out


def _finite(values: Mapping[str, Value]) -> dict[str, Any]:
  """The values with None for what JSON cannot hold."""

  def one(value: Value) -> Any:
    if isinstance(value, list):
      return [one(v) for v in value]
    return value if np.isfinite(value) else None

  return {k: one(v) for k, v in values.items()}
