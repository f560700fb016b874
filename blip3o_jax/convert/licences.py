"""Which licence each component comes under, as far as sizes and the source's own files tell.

Known ones are those under which the weights of these sizes were published; the text that came with
the files decides, and travels with them.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any

from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import sizes as released_sizes

TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
QWEN_3B = "Qwen Research License Agreement (Qwen2.5-VL-3B)"
APACHE = "Apache-2.0"


@dataclasses.dataclass(frozen=True)
class Licence:
  """Attributes: name; "unknown" where the sizes are of no release. commercial: None if unknown."""

  name: str
  commercial: bool | None


UNKNOWN = Licence("unknown", None)


def of(component: str, cfg: blip3o.Config | None, facts: Mapping[str, Any]) -> Licence:
  """The licence of a component whose sizes are a release's.

  Args:
    cfg: of the model, if the source is one. facts: the component's "parameters".
  """
  count = facts["parameters"]
  if component in ("backbone", "visual") and cfg is not None:
    found = {"4b": Licence(QWEN_3B, False), "8b": Licence(f"{APACHE} (Qwen2.5-VL-7B)", True)}
    for size, licence in found.items():
      wanted = released_sizes.released(size)
      mine, theirs = cfg.backbone, wanted.backbone
      if (mine.dim, mine.depth, mine.mlp_dim) == (theirs.dim, theirs.depth, theirs.mlp_dim):
        return licence
  known = {
    ("generation", 1_362_388_896): Licence(f"{APACHE} (BLIP3-o)", True),
    ("generation", 1_365_239_712): Licence(f"{APACHE} (BLIP3-o)", True),
    ("encoder", 4_350_208_256): Licence("MIT (EVA-CLIP)", True),
    ("unet", 2_525_520_644): Licence("CreativeML Open RAIL++-M (SDXL)", True),
    ("autoencoder", 83_653_863): Licence("CreativeML Open RAIL++-M (SDXL)", True),
  }
  return known.get((component, count), UNKNOWN)


def declared(directory: Path) -> dict[str, str]:
  """What a source says itself: {"card": licence of the model card, "files": names of texts}."""
  files = sorted(
    str(p.relative_to(directory)) for t in TEXTS for p in directory.rglob(t) if p.is_file()
  )
  out = {"files": ", ".join(files)} if files else {}
  card = directory / "README.md"
  head = card.read_text(errors="replace")[:4000] if card.is_file() else ""
  found = re.search(r"\A---\n(?:.*\n)*?license(?:_name)?: *(.+)\n(?:.*\n)*?---", head)
  return out | ({"card": found.group(1).strip()} if found else {})


def label(licence: Mapping[str, Any]) -> str:
  """The name of a licence, a `Licence` as a dict, and whether it forbids commercial use."""
  return licence["name"] + (", NON-COMMERCIAL" if licence["commercial"] is False else "")


def lines(components: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A line for each component whose licence forbids commercial use, or is not known."""
  out = []
  for name, facts in components.items():
    licence = facts["licence"]
    if licence["commercial"] is False:
      out.append(f"{name}: NON-COMMERCIAL, under the {licence['name']}")
    elif licence["commercial"] is None:
      out.append(f"{name}: licence unknown here; that of its source holds")
  return out
