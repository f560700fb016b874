"""A Qwen2.5-VL's vocabulary made BLIP3-o's: three tokens more, the table cut or grown (spec 1.6).

The input table's new rows are the mean of the rows of all older tokens; an untied head keeps the
rows that it has there, which Qwen pads, and gets the mean where it has none.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from blip3o_jax.convert.source import Origin
from blip3o_jax.systems.blip3o.prompts import SPECIAL

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


def wanted(origin: Origin, asked: str) -> Change | None:
  """What to do about the vocabulary.

  Args:
    asked: a number of rows, "keep", or "auto": a plain Qwen2.5-VL whose tokenizer lacks BLIP3-o's
      tokens gets them, and as many rows as its tokenizer then has ids; anything else is kept.

  Raises:
    ValueError: a number that does not fit, or a source without a language model.
  """
  if asked == "keep" or (asked == "auto" and not origin.plain):
    return None
  if origin.cfg is None:
    raise ValueError(f"--vocab-size {asked}: {origin.directory} holds no language model")
  before = origin.cfg.backbone.vocab_size
  backend = _backend(origin.directory)
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


def write(directory: Path, change: Change) -> None:
  """Changes the copied config.json and tokenizer files of a directory accordingly."""
  path = directory / "config.json"
  values = json.loads(path.read_text())
  for place in (values, values.get("text_config", {})):
    if "vocab_size" in place:
      place["vocab_size"] = change.after
  path.write_text(json.dumps(values, indent=2) + "\n")
  if not change.tokens:
    return
  from tokenizers import AddedToken

  backend = _backend(directory)
  assert backend is not None
  backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in change.tokens])
  ids = {t: backend.token_to_id(t) for t in change.tokens}
  if sorted(ids.values()) != list(range(change.known, change.known + len(ids))):
    raise ValueError(f"{directory}: the tokenizer's ids have gaps; the new tokens came to {ids}")
  backend.save(str(directory / "tokenizer.json"))
  path = directory / "tokenizer_config.json"
  if path.is_file():
    values = json.loads(path.read_text())
    known = values.setdefault("added_tokens_decoder", {})
    for token, i in ids.items():
      facts = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
      known[str(i)] = {"content": token, **facts, "special": True}
    more = values.setdefault("additional_special_tokens", [])
    more += [t for t in change.tokens if t not in more]
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


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
