"""What a miniature is made of: a system's stages, their configs and their order.

A plan is a file beside the configs, `shapes_NAME_plan.py` for the system NAME, whose `get_plan()`
gives a `Plan`. Imports no jax.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import runpy
from typing import Any
from typing import Literal

from ml_collections import ConfigDict

from blip3o_jax.miniature.shipped import DEFAULT as DEFAULT

Kind = Literal["shipped", "trained"]  # where a miniature's frozen parts come from, see `parts`
# Stages in one line run after each other, lines of one phase side by side.
Phase = tuple[tuple[str, ...], ...]
FILES = "shapes_{}_plan.py"


@dataclasses.dataclass(frozen=True)
class Amounts:
  """How much the stages that are no training run work on.

  Attributes:
    words: scenes whose texts train the tokenizer. whiten: scenes that measure the whitening.
    probe: drawings a category that choose what to tune on.
    asked: test questions a kind, prompts a category, edits a kind, and pictures to reconstruct.
    alike: drawings of one prompt that measure how they differ, 2 or more.
  """

  words: int = 4000
  whiten: int = 6000
  probe: int = 40
  asked: int = 100
  alike: int = 8


ALL = Amounts()
# What --debug changes in every config, and the records that the stages' data then have.
DEBUG = {
  "steps": 3,
  "batch": 16,
  "optimizer.warmup_steps": 1,
  "log.every": 1,
  "data.records": 64,
  "eval_data.records": 64,
}
REHEARSED = Amounts(words=400, whiten=64, probe=1, asked=2, alike=2)


@dataclasses.dataclass(frozen=True)
class Call:
  """What a stage works with.

  Attributes:
    work: the working folder. amounts: see there. config: of a training stage, by its name and
      further words of its config.
  """

  work: Path
  amounts: Amounts
  config: Callable[..., ConfigDict]


@dataclasses.dataclass(frozen=True)
class Ships:
  """What the card and the page of a miniature that ships hold, see `ship`.

  Attributes:
    title: of the page. text: what the model is, in sentences.
    scores: of report.json, kept in the card. tables: {one of these: its heading on the page}.
    picture: of the working folder, that docs show. more: further sections, given the scores.
  """

  title: str
  text: str
  scores: tuple[str, ...]
  tables: Mapping[str, str]
  picture: str
  more: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: ()


@dataclasses.dataclass(frozen=True)
class Plan:
  """The stages of a system's miniature.

  Attributes:
    system: its name. configs: {training stage: config file}.
    phases: {where its frozen parts come from: phases in their order}.
    arguments: words of a training stage's config, given the stage and the working folder.
    made: {stage: what it does and finds}; others are training runs of their configs.
    alone: stages of `made` that no phase runs.
    summary: lines that say what report.json holds.
    rests: {where its frozen parts come from: systems whose shipped miniatures they are}.
    ships: what the page of the miniature that ships says of it.
  """

  system: str
  configs: Mapping[str, str]
  phases: Mapping[Kind, tuple[Phase, ...]]
  arguments: Callable[[str, Path], Mapping[str, Any]]
  made: Mapping[str, Callable[[Call], dict[str, Any]]]
  alone: tuple[str, ...]
  summary: Callable[[Mapping[str, Any]], str]
  rests: Mapping[Kind, tuple[str, ...]]
  ships: Ships

  def stages(self, *kinds: Kind) -> list[str]:
    """The stages of runs of these kinds, in their order."""
    return [s for kind in kinds for phase in self.phases[kind] for lane in phase for s in lane]


def read(configs: Path, system: str = DEFAULT) -> Plan:
  """The plan of a system's miniature.

  Args:
    configs: the folder of the configs.

  Raises:
    ValueError: a system without a plan there, with those that have one.
  """
  path = configs / FILES.format(system)
  if not path.is_file():
    before, after = FILES.split("{}")
    known = sorted(
      p.name.removeprefix(before).removesuffix(after) for p in configs.glob(FILES.format("*"))
    )
    raise ValueError(f"system {system!r} has no miniature; expected one of {', '.join(known)}")
  plan: Plan = runpy.run_path(str(path))["get_plan"]()
  return plan
