"""A model's directory from what a user names: a local directory, or the id of a hub repository.

Nothing else in the package reaches for the network.
"""

import logging
from pathlib import Path
import re

from blip3o_jax import files
from blip3o_jax.weights import shards

SCHEME = "hf://"
# An owner and a name, as the hub allows them; no path of more parts, no "./", "~/" or "../".
ID = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9_][\w-]*(\.[\w-]+)*")
FILES = ("*.json", "*.safetensors", "*.txt", "*.md", "LICENSE*", "NOTICE*", "*.model")
PICKLES = ("*.bin",)


def looks_like_id(source: str) -> bool:
  """Whether a name that is no directory here can be that of a hub repository."""
  if source.startswith(SCHEME):
    return True
  return ID.fullmatch(source) is not None and not Path(source).parent.exists()


def local_directory(source: str, *, pickles: bool = False) -> Path:
  """The local directory of a model; a repository is fetched into huggingface_hub's cache.

  A directory that exists wins. "owner/name" is an id when there is no directory "owner" here
  either; "hf://owner/name" always is.

  Args:
    source: what the user gave. pickles: fetch `.bin` files too.

  Raises:
    FileNotFoundError: no directory and no id, or a repository that cannot be had: offline and not
      in the cache, or not all of it, absent, private or gated; by name, with what was tried.
  """
  if source and Path(source).is_dir():
    return Path(source)
  if source and Path(source).exists():
    raise FileNotFoundError(f"{source}: a file; expected a directory that holds a model")
  if not looks_like_id(source):
    raise FileNotFoundError(
      f"{source or 'nothing'}: no such directory. Expected a local directory, or a hub id such as "
      f"owner/name ({SCHEME}owner/name where a folder 'owner' is in the way)"
    )
  name = source.removeprefix(SCHEME)
  if not ID.fullmatch(name):
    raise FileNotFoundError(f"{source}: not a hub id; expected {SCHEME}owner/name")
  return _fetch(name, pickles)


def _fetch(name: str, pickles: bool) -> Path:
  import huggingface_hub
  from huggingface_hub import errors

  by_hand = (
    f"To use files of your own, give a directory: hf download {name} --local-dir DIR, then DIR"
  )
  tried = f"{name}: no such local directory, so it was taken for a hub repository"
  logging.getLogger(__name__).info("%s: fetching from the hub", name)
  try:
    found = huggingface_hub.snapshot_download(
      name, allow_patterns=[*FILES, *(PICKLES if pickles else ())]
    )
  except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
    raise FileNotFoundError(
      f"{tried}, which the hub does not give out: absent, private or gated ({_first_line(error)}). "
      f"Log in with hf auth login after accepting its terms. {by_hand}"
    ) from error
  except Exception as error:  # of its HTTP library, which changed between versions
    raise FileNotFoundError(
      f"{tried}; it is not in the local cache and could not be fetched: {_first_line(error)} "
      f"(no connection, or HF_HUB_OFFLINE is set). {by_hand}"
    ) from error
  if lost := _missing(Path(found)):
    unasked = not pickles and any(file.endswith((".bin", "*.safetensors")) for file in lost)
    alone = " (pickles are left out without --allow-pickle of blip3o convert import)"
    raise FileNotFoundError(
      f"{name}: the copy in the local cache ({found}) is incomplete, it lacks {', '.join(lost)}"
      f"{alone if unasked else ''}; fetch it again with a connection: hf download {name}. {by_hand}"
    )
  return Path(found)


def _missing(snapshot: Path) -> list[str]:
  """What a snapshot lacks: one that was cut off is given as if it were whole when offline."""
  out = shards.missing(snapshot)
  here = {file.relative_to(snapshot).as_posix() for file in files.walk(snapshot)}
  try:
    values = files.read_json(snapshot / "config.json", nulls=True)
  except (OSError, ValueError):
    values = {}
  # A language model has its weights beside its config.json, and a tokenizer.
  speaks = bool({"vocab_size", "text_config"} & set(values))
  weights = [n for n in here if Path(n).suffix in files.WEIGHTS and not (speaks and "/" in n)]
  if not weights and not out:
    out.append("*.safetensors")
  if speaks and "tokenizer.json" not in here and not {"vocab.json", "merges.txt"} <= here:
    out.append("tokenizer.json")
  return out


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
