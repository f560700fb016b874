"""Text to ids and back: Qwen's byte-level BPE, special tokens by name; and training a small one.

Special strings inside a text are ordinary characters here: only prompts place special ids.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import functools
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any

from blip3o_jax import files

# Qwen's split of a text into words, contractions, numbers digit by digit, and spaces.
PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
  r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Fields of tokenizer_config.json that change ids or texts -> what is built. The others say how text
# is padded, cut or put into a template, which a system does itself.
SETTINGS: dict[str, tuple[Any, ...]] = {
  **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space"), (False,)),
  **dict.fromkeys(("clean_up_tokenization_spaces", "do_lower_case"), (False,)),
  "errors": ("replace",),
  "tokenizer_class": (
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    *("GPT2Tokenizer", "GPT2TokenizerFast"),
  ),
}
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


class Tokenizer:
  """A tokenizer of the `tokenizers` library with the ids of special tokens as attributes.

  Args:
    backend: the library's tokenizer. name: how errors call it.
    special: {attribute: its token}, of the system that places them; another special token of the
      vocabulary cannot be placed.

  Attributes:
    special: {attribute: id}; `tokenizer.im_end` is `tokenizer.special["im_end"]`.
    size: number of ids, special ones included.

  Raises:
    ValueError: a special token that the vocabulary lacks, by name.
  """

  def __init__(self, backend: Any, name: str, special: Mapping[str, str]):
    from tokenizers import AddedToken

    self._backend, self._name = backend, name
    self.size: int = backend.get_vocab_size(with_added_tokens=True)
    lost = [token for token in special.values() if backend.token_to_id(token) is None]
    if lost:
      raise ValueError(f"{name}: the vocabulary lacks the special tokens {', '.join(lost)}")
    # A file may hold these as plain added tokens, and may cut or pad: text must do neither here.
    backend.add_special_tokens([AddedToken(token, special=True) for token in special.values()])
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    self.special: Mapping[str, int] = {a: backend.token_to_id(t) for a, t in special.items()}

  def __getattr__(self, name: str) -> int:
    """The id of a special token; AttributeError, which lists them, for another name."""
    special = self.__dict__.get("special", {})
    if name not in special:
      raise AttributeError(f"{name!r} is none of the special tokens {', '.join(special)}")
    return special[name]

  @classmethod
  def load(cls, directory: str | Path, special: Mapping[str, str]) -> "Tokenizer":
    """The tokenizer of a directory: tokenizer.json, or vocab.json with merges.txt.

    Args:
      special: see the class.

    Raises:
      FileNotFoundError: neither is there. ValueError: a file that is not a tokenizer, a special
        token that it lacks.
    """
    from tokenizers import Tokenizer as Backend

    directory = Path(directory)
    _check_settings(directory / "tokenizer_config.json")
    file = directory / "tokenizer.json"
    if file.is_file():
      try:
        return cls(Backend.from_file(str(file)), str(file), special)
      except ValueError:
        raise
      except Exception as error:  # the library raises bare Exception on bad JSON
        files.refuse_stranger(file)
        raise ValueError(f"{file}: not a tokenizer: {error}") from None
    if not all((directory / n).is_file() for n in ("vocab.json", "merges.txt")):
      raise FileNotFoundError(
        f"{directory}: no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
      )
    for name in ("vocab.json", "merges.txt"):
      files.refuse_stranger(directory / name)
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    return cls(fast.backend_tokenizer, str(directory), special)

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits, equal for tokenizers that make the same ids of every text.

    Of the tokenizer itself: one that was read from vocab.json and merges.txt has it too.
    """
    return hashlib.blake2b(self._backend.to_str().encode(), digest_size=8).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text; special strings in it are ordinary text."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """The text of ids."""
    return self._backend.decode(list(ids), skip_special_tokens=skip_special)


def copy_files(source: Path, directory: Path) -> None:
  """Copies the files of a tokenizer."""
  for name in FILES:
    if (source / name).is_file():
      shutil.copyfile(source / name, directory / name)


def _check_settings(path: Path) -> None:
  """Refuses a tokenizer_config.json that asks for other ids or texts than `Tokenizer` makes.

  Raises:
    ValueError: by field and value.
  """
  values = files.read_json(path) if path.is_file() else {}
  for name, built in SETTINGS.items():
    if name in values and values[name] not in built:
      told = " or ".join(map(repr, built))
      raise ValueError(f"{path}: {name} {values[name]!r} is not built, only {told}")


def train_bpe(
  texts: Iterable[str], vocab_size: int, directory: str | Path, special: Mapping[str, str]
) -> Tokenizer:
  """Trains a byte-level BPE with Qwen's split; writes it to `directory`.

  Args:
    texts: of any length. vocab_size: ids in all, the 256 bytes and the special tokens included.
    special: {attribute: its token}, in the order of their ids; `pad` and `im_end` among them.

  Returns:
    The tokenizer; tokenizer.json and tokenizer_config.json are written under temporary names first.

  Raises:
    ValueError: a size that bytes and special tokens alone exceed.
  """
  from tokenizers import AddedToken
  from tokenizers import Regex
  from tokenizers import Tokenizer as Backend
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers
  from tokenizers import trainers

  if vocab_size < 256 + len(special):
    raise ValueError(f"vocab_size {vocab_size}: bytes and special tokens are {256 + len(special)}")
  backend = Backend(models.BPE())
  backend.normalizer = normalizers.NFC()
  split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - len(special),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  backend.add_special_tokens([AddedToken(t, special=True) for t in special.values()])
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": special["pad"],
    "eos_token": special["im_end"],
    "model_max_length": 4096,
    "padding_side": "left",
    "additional_special_tokens": [t for n, t in special.items() if n != "pad"],
  }
  made = {
    "tokenizer.json": backend.to_str(pretty=True),
    "tokenizer_config.json": json.dumps(settings, indent=2),
  }
  for name, text in made.items():
    files.write_text(directory / name, text)
  return Tokenizer(backend, str(directory), special)
