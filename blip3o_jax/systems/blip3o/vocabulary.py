"""A Qwen2.5-VL's vocabulary made BLIP3-o's: three tokens more, the table cut or grown (spec 1.6).

The input table's new rows are the mean of the rows of all older tokens; an untied head keeps the
rows that it has there, which Qwen pads, and gets the mean where it has none.
"""

from collections.abc import Iterator
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_jax import files
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.blip3o.prompts import SPECIAL
from blip3o_jax.systems.parts.opened import Opened
from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
ROWS = 8192  # of a table, summed at a time
NEWER = "extra_special_tokens"  # what transformers 5 calls the list of additional ones
ADDED = tuple(SPECIAL[name] for name in ("image_start", "image_end", "image"))


@dataclasses.dataclass(frozen=True)
class Change:
  """Attributes: before, after: rows of the table. known: ids that are older than the new tokens.

  tokens: those that the tokenizer gets, in order; none where it has them.
  """

  before: int
  after: int
  known: int
  tokens: tuple[str, ...] = ()

  def __str__(self) -> str:
    told = f", new tokens {' '.join(self.tokens)}" if self.tokens else ""
    return f"vocabulary {self.before} -> {self.after} rows, the mean from row {self.known}{told}"

  def apply(self, part: Opened) -> Opened:
    """The main files with the changed vocabulary; another part as it is."""
    if part.part.kind != "model":
      return part
    params = dict(part.params)
    for path, axis in (("backbone/embed_tokens/embedding", 0), ("backbone/lm_head/kernel", 1)):
      if path in params:
        old = params[path]
        params[path] = (*old[:axis], self.after, *old[axis + 1 :])
    tensors = Resized(part.tensors, self.after, self.known)
    return dataclasses.replace(part, tensors=tensors, params=params, fields=())

  def write(self, directory: Path) -> None:
    """Changes the copied config.json and tokenizer files of a directory accordingly."""
    path = directory / "config.json"
    values = files.read_json(path, nulls=True)
    for place in (values, values.get("text_config") or {}):
      if "vocab_size" in place:
        place["vocab_size"] = self.after
    path.write_text(json.dumps(values, indent=2) + "\n")
    if not self.tokens:
      return
    from tokenizers import AddedToken

    backend = _backend(directory)
    assert backend is not None
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in self.tokens])
    ids = {t: backend.token_to_id(t) for t in self.tokens}
    if sorted(ids.values()) != list(range(self.known, self.known + len(ids))):
      raise ValueError(f"{directory}: the tokenizer's ids have gaps; the new tokens came to {ids}")
    backend.save(str(directory / "tokenizer.json"))
    path = directory / "tokenizer_config.json"
    if path.is_file():
      values = files.read_json(path, nulls=True)
      known = values.get("added_tokens_decoder") or {}
      for token, i in ids.items():
        facts = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        known[str(i)] = {"content": token, **facts, "special": True}
      values["added_tokens_decoder"] = known
      newer = isinstance(values.get(NEWER), list)
      name = NEWER if newer else "additional_special_tokens"
      more = values.get(name) or []
      values[name] = [*more, *(t for t in self.tokens if t not in more)]
      path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def wanted(directory: Path, cfg: Config, plain: bool, asked: str) -> Change | None:
  """What to do about the vocabulary of a directory.

  Args:
    cfg: of its model. plain: whether that is a Qwen2.5-VL without generation.
    asked: a number of rows, "keep", or "auto": a plain Qwen2.5-VL whose tokenizer lacks BLIP3-o's
      tokens gets them, and as many rows as its tokenizer then has ids; anything else is kept.

  Raises:
    ValueError: a number that does not fit; ids of config.json that are not the tokenizer's.
  """
  backend = _backend(directory)
  if backend is not None:
    ids = {name: backend.token_to_id(SPECIAL[name]) for name in released.TOKENS.values()}
    if None not in ids.values():
      released.check_tokens(directory, ids)
  if asked == "keep" or (asked == "auto" and not plain):
    return None
  before = cfg.backbone.vocab_size
  if asked == "auto" and backend is None:
    return None
  missing: tuple[str, ...] = ()
  count = known = None
  if backend is not None:
    missing = tuple(t for t in ADDED if backend.token_to_id(t) is None)
    count = backend.get_vocab_size(with_added_tokens=True)
    known = count if missing else min(backend.token_to_id(t) for t in ADDED)
    count += len(missing)
  if asked == "auto":
    if not missing:
      return None
    after = count
  else:
    if not asked.isdigit() or int(asked) < len(ADDED) + 1:
      raise ValueError(f"--vocab-size {asked!r}: expected a number of rows, keep or auto")
    after = int(asked)
    if count is not None and after < count:
      raise ValueError(
        f"--vocab-size {after}: the tokenizer has {count} ids, the new ones included"
      )
  assert after is not None
  known = after - len(ADDED) if known is None else known
  if known > before:
    raise ValueError(
      f"the embedding has {before} rows, fewer than the {known} tokens whose mean the new rows are"
    )
  return Change(before, after, known, missing)


def _backend(directory: Path) -> Any:
  """The tokenizer of a directory; None where there is none."""
  from tokenizers import Tokenizer

  file = directory / "tokenizer.json"
  if file.is_file():
    try:
      return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
      raise ValueError(f"{file}: not a tokenizer: {error}") from None
  if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory), local_files_only=True).backend_tokenizer
  return None


class Resized(Reader):
  """The tensors of a reader, with another number of rows in the embedding and the head.

  Args:
    after: rows. known: those from this one on are the mean of those before it; the head's are so
      only where it has none.
  """

  def __init__(self, tensors: Reader, after: int, known: int):
    self.files, self.index = tensors.files, tensors.index
    self.absent = tensors.absent
    # The files' tables are not those here, so sums of the files' sizes hold no more.
    self.hidden = tensors.hidden + sum(map(_changes, tensors))
    self.chosen, self.notes = tensors.chosen, tensors.notes
    self._tensors, self._after, self._known = tensors, after, known

  def __getitem__(self, name: str) -> Shape:
    shape = self._tensors[name]
    return (self._after, *shape[1:]) if _changes(name) else shape

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""
    return self._tensors.dtype(name)

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and its place among those of the file."""
    return self._tensors.where(name)

  def view(self, name: str) -> Any:
    """A tensor, or what gives blocks of it when indexed with slices that have bounds."""
    whole = self._tensors.view(name)
    if not _changes(name):
      return whole
    # The head's padding rows are kept; the input table's are overwritten.
    kept = min(len(whole), self._after) if name == HEAD else self._known
    return _Table(whole, kept, self._known)


class _Table:
  """A table of rows of which those from `kept` on are the mean of the first `known`."""

  def __init__(self, whole: np.ndarray, kept: int, known: int):
    self._whole, self._kept = whole, kept
    total = np.zeros(whole.shape[1], np.float64)
    for start in range(0, known, ROWS):
      total += whole[start : min(start + ROWS, known)].astype(np.float32).sum(0, dtype=np.float64)
    self._mean = (total / known).astype(whole.dtype)

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    first, *rest = index
    stop = min(first.stop, self._kept)
    old = self._whole[(slice(min(first.start, stop), stop), *rest)]
    new = np.broadcast_to(self._mean, (first.stop - max(first.start, stop), len(self._mean)))
    return np.concatenate([old, new[(slice(None), *rest)]])


def _changes(name: str) -> bool:
  return name == HEAD or name.endswith(EMBEDDING)
