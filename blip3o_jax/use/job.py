"""A file that is to be drawn, and how."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
from pathlib import PurePosixPath
from typing import Any
from typing import Literal

from PIL import Image

from blip3o_jax import files

BATCH = 8
Verb = Literal["generate", "edit"]


@dataclasses.dataclass(frozen=True)
class Job:
  """One file to draw.

  Attributes:
    file: its name below the output folder, with "/": .png, or .webp with `sidecar`.
    prompt: what is asked for, of an edit the instruction.
    seeds: one a picture; of several the file is a grid of as many rows as columns, row by row.
    shown: gives the picture that is edited, or that the model sees before the prompt.
    about: of JSON, is kept with the picture.
    sidecar: the file, below the output folder, of the metadata that a format cannot hold.
    image: what the metadata says of the picture that is shown, see `asking.image_of`.
  """

  file: str
  prompt: str
  seeds: tuple[int, ...]
  shown: Callable[[], Image.Image] | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sidecar: str = ""
  image: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def metadata(self) -> dict[str, Any]:
    """What the file's metadata says beside how it was drawn, as JSON would hold it."""
    seeds: dict[str, Any] = {"seed": self.seeds[0]}
    if len(self.seeds) > 1:
      side = math.isqrt(len(self.seeds))
      seeds = {"seeds": list(self.seeds), "grid": [side, side]}
    about = files.without_nulls(json.loads(json.dumps(self.about)))
    more = {"about": about} if about else {}
    return {"prompt": self.prompt, **seeds, **self.image, **more}


@dataclasses.dataclass(frozen=True)
class How:
  """How jobs are drawn.

  Attributes:
    verb: "generate" or "edit". options: of the model's verb. batch: pictures drawn at once.
    process, processes: this process takes job i where i % processes == process.
  """

  verb: Verb = "generate"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  batch: int = BATCH
  process: int = 0
  processes: int = 1


def check(jobs: Sequence[Job], how: How) -> None:
  """Raises ValueError for jobs or a share of them that cannot be."""
  if not jobs:
    raise ValueError("no prompts: nothing to draw")
  if how.processes < 1 or not 0 <= how.process < how.processes:
    raise ValueError(
      f"process {how.process} of {how.processes}: expected a number from 0, below the number of "
      "processes"
    )
  if how.batch < 1:
    raise ValueError(f"batch {how.batch}: expected at least 1")
  seen: dict[str, Job] = {}
  for job in jobs:
    path = PurePosixPath(job.file)
    odd = path.is_absolute() or not path.name or {"..", "."} & set(job.file.split("/"))
    if odd or "\\" in job.file or not job.file.isprintable():
      raise ValueError(f"{job.file!r}: not a name of a file below the output folder")
    if path.suffix != ".png" and not (path.suffix == ".webp" and job.sidecar):
      raise ValueError(f"{job.file!r}: expected a name that ends in .png, or .webp and a sidecar")
    if job.file.lower() in seen:
      other = seen[job.file.lower()]
      raise ValueError(
        f"{job.file!r} is the file of two prompts: {other.prompt!r} and {job.prompt!r}"
      )
    seen[job.file.lower()] = job
    if not job.seeds or math.isqrt(len(job.seeds)) ** 2 != len(job.seeds):
      raise ValueError(f"{job.file!r}: {len(job.seeds)} pictures are no grid; take 1, 4, 9, ...")
    if how.verb == "edit" and job.shown is None:
      raise ValueError(f"{job.file!r}: no picture to edit")
