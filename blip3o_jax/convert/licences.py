"""Which licence each component comes under, as far as its system and the source's own files tell.

A system knows those under which weights of its sizes were published (`System.licence`); the text
that came with the files decides, and travels with them.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from blip3o_jax.data import licence
from blip3o_jax.systems.parts import layout

TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")


def declared(directory: Path) -> dict[str, str]:
  """What a source says itself: {"card": licence of the model card, "files": names of texts}."""
  files = sorted(
    str(p.relative_to(directory)) for t in TEXTS for p in directory.rglob(t) if p.is_file()
  )
  out = {"files": ", ".join(files)} if files else {}
  card = directory / "README.md"
  head = card.read_text(errors="replace")[:4000] if card.is_file() else ""
  found = licence.card(head)
  return out | ({"card": found} if found else {})


def of(known: layout.Licence, said: Mapping[str, str]) -> dict[str, Any]:
  """A component's licence as a dict: what is `known`, or else what its card says, see `declared`.

  Whether a licence that only the card names forbids commercial use is left to its reader.
  """
  if known == layout.Licence() and "card" in said:
    known = layout.Licence(f"{said['card']} (its card)")
  return dataclasses.asdict(known)


def label(known: Mapping[str, Any]) -> str:
  """The name of a licence, a `Licence` as a dict, and whether it forbids commercial use."""
  return known["name"] + (", NON-COMMERCIAL" if known["commercial"] is False else "")


def lines(components: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A line for each component whose licence forbids commercial use, or is not known."""
  out = []
  for name, facts in components.items():
    known = facts["licence"]
    if known["commercial"] is False:
      out.append(f"{name}: NON-COMMERCIAL, under the {known['name']}")
    elif known == dataclasses.asdict(layout.Licence()):
      out.append(f"{name}: licence unknown here; that of its source holds")
  return out
