"""Where a miniature's frozen parts come from: trained in its working folder, or shipped.

`WORK/parts.json` says which, from the first call on, and of which system the miniature is: a
folder's stages rest on one choice. Imports no jax.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
from pathlib import Path

from blip3o_jax import files
from blip3o_jax.miniature import plans
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature.plans import Kind as Kind

RECORD = "parts.json"
# How a call of the quickstart asks for each.
CALLS: dict[Kind, str] = {"shipped": "without --from-scratch", "trained": "with --from-scratch"}


@dataclasses.dataclass(frozen=True)
class Parts:
  """The sources of the frozen parts, entries as `init_from` takes them.

  Attributes:
    kind: "shipped" or "trained". encoder: of the image tower with its whitening.
    backbone: of the language model, as the generator's training starts from it.
    reader: of language model and vision tower. decoder: of UNet and autoencoder.
    home: of shipped parts their directory, of trained ones the working folder.
  """

  kind: Kind
  encoder: str
  backbone: str
  reader: str
  decoder: tuple[str, ...]
  home: Path


def choose(work: Path, kind: Kind, system: str = plans.DEFAULT, rests: Sequence[str] = ()) -> None:
  """Records the choice in a new working folder; in one that has made it, checks that it is this.

  Args:
    rests: systems whose shipped miniatures the folder's stages read, see `plans.Plan`.

  Raises:
    ValueError: a folder of the other choice, of another system, or of other shipped parts than are
      installed now.
    FileNotFoundError: shipped parts that this installation has not.
  """
  path = work / RECORD
  before = json.loads(path.read_text()) if path.exists() else {}
  # Folders from before there was a second system do not name theirs.
  if before and (own := before.get("system", plans.DEFAULT)) != system:
    raise ValueError(
      f"{work}: holds a miniature of {own}; call with --system {own} to go on there, or give "
      "another --workdir"
    )
  if before and before["parts"] != kind:
    raise ValueError(
      f"{work}: its frozen parts are {before['parts']}; call {CALLS[before['parts']]} to go on "
      "there, or give another --workdir"
    )
  now = {"system": system, "parts": kind, "sha256": _identity(rests)}
  if before.get("sha256", "") != now["sha256"] and before:
    raise ValueError(
      f"{work}: was begun with other shipped parts than are installed now; give another --workdir"
    )
  if not path.exists():
    files.write_text(path, json.dumps(now))


def read(work: Path) -> Parts:
  """The sources of the frozen parts of a working folder.

  Raises:
    FileNotFoundError: a folder without a record, or shipped parts that are not installed.
  """
  path = work / RECORD
  if not path.exists():
    raise FileNotFoundError(f"{path}: absent; launch/quickstart.py writes it in its first call")
  if json.loads(path.read_text())["parts"] == "trained":
    return Parts(
      kind="trained",
      encoder=str(work / "features" / "encoder"),
      backbone=str(work / "backbone"),
      reader=str(work / "backbone"),
      decoder=(str(work / "autoencoder"), f"{work / 'unet'}#ema"),
      home=work,
    )
  home = shipped.directory()
  return Parts(
    kind="shipped",
    encoder=f"{home}#only=encoder",
    backbone=f"{home}#only=backbone",
    reader=f"{home}#only=backbone+visual",
    decoder=(str(home),),
    home=home,
  )


def _identity(systems: Sequence[str]) -> str:
  """A hash of these shipped models, without their cards and pages; "" of none."""
  sums = [shipped.card(each)["sha256"] for each in systems]
  return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest() if sums else ""
