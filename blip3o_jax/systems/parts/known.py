"""What may stand in somebody's JSON config: tables of fields, and the check against them.

A field that changes numbers is read, or has a value that is built, or is refused by name. One that
stands in no table is refused too: nobody knows what it asks for.
"""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import fnmatch
import math
from typing import Any

Json = dict[str, Any]
QUANTISED = ("quantization_config", "compression_config")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
KINDS |= {list: "a list", dict: "a group of fields"}

# What transformers writes into every config and group of one, versions 4 and 5. None of it changes
# what a network makes of its input; how an answer is drawn is said by the options of `chat`.
TRANSFORMERS = (
  *("_*", "*_token_id", "architectures", "attn_implementation", "auto_map", "dtype", "model_type"),
  *(
    "name_or_path",
    "torch_dtype",
    "transformers_version",
    "unsloth_*",
    "use_bfloat16",
    "use_cache",
  ),
  *("chunk_size_feed_forward", "finetuning_task", "id2label", "label2id", "num_labels", "prefix"),
  *("output_*", "problem_type", "return_dict*", "task_specific_params", "tf_legacy_loss"),
  *("tokenizer_class", "torchscript", "gradient_checkpointing", "initializer_range"),
  *("attention_dropout", "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beam*"),
  *("num_return_sequences", "max_length", "min_length", "max_new_tokens", "early_stopping"),
  *(
    "length_penalty",
    "diversity_penalty",
    "repetition_penalty",
    "exponential_decay_length_penalty",
  ),
  *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"),
  *("begin_suppress_tokens", "remove_invalid_values", "is_decoder", "tie_encoder_decoder"),
)
TRANSFORMERS_FIXED = {
  "add_cross_attention": (False,),
  "is_encoder_decoder": (False,),
  "pruned_heads": ({},),
}


@dataclasses.dataclass(frozen=True)
class Known:
  """The fields of one kind of JSON object.

  Attributes:
    read: {field: kind of its value} of those that are read; any value of the kind is built, or who
      reads it says what is. int, float, bool, str, list or dict.
    fixed: {field: values that are built}; absent is the first of them, see `unset`.
    free: patterns of fields that change no numbers here.
    unset: fixed fields whose absence means a value that is not built: {field: that value}.
  """

  read: Mapping[str, type]
  fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  free: Collection[str] = ()
  unset: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, where: str, values: Mapping[str, Any]) -> Json:
    """The fields of an object that are not null, which means absent.

    Args:
      where: the file, and the field that holds the object, for errors.

    Raises:
      ValueError: the first field that is of the wrong kind, not built or unknown, by name.
    """
    found = {name: value for name, value in values.items() if value is not None}
    refuse_quantised(where, found)
    for name, value in found.items():
      if name in self.read:
        _kind(where, name, value, self.read[name])
      elif name in self.fixed:
        _fixed(where, name, value, self.fixed[name])
      elif not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.free):
        raise ValueError(
          f"{where}: {name} {_short(value)} is no field that is known here; remove it if it "
          "changes no numbers"
        )
    for name, value in self.unset.items():
      if name not in found:
        _fixed(where, name, value, self.fixed[name], " where the field is absent")
    return found


def refuse_quantised(where: str, values: Mapping[str, Any]) -> None:
  """Refuses the config of quantised weights.

  Raises:
    ValueError: with the field, the method and what to fetch.
  """
  for name in QUANTISED:
    if values.get(name) is not None:
      told = values[name].get("quant_method") if isinstance(values[name], Mapping) else values[name]
      raise ValueError(
        f"{where}: {name} says that the weights are quantised ({told or 'method not said'}), which "
        "is not read; fetch them in bfloat16, float16 or float32"
      )


def _kind(where: str, name: str, value: Any, kind: type) -> None:
  """Raises ValueError for a value of another kind; a whole number is a number, a bool is none."""
  kinds = (int, float) if kind is float else (kind,)
  if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
    raise ValueError(f"{where}: {name} {_short(value)}: expected {KINDS[kind]}")


def _fixed(where: str, name: str, value: Any, built: Collection[Any], absent: str = "") -> None:
  """Raises ValueError for a value that is none of those that are built."""
  if not any(same(value, only) for only in built):
    told = " or ".join(repr(only) for only in built)
    raise ValueError(f"{where}: {name} {_short(value)}{absent} is not built, only {told}")


def same(one: Any, other: Any) -> bool:
  """Whether two JSON values are equal, numbers up to how they are written."""
  if isinstance(one, list | tuple) and isinstance(other, list | tuple):
    return len(one) == len(other) and all(map(same, one, other))
  numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
  if numbers:
    return math.isclose(one, other, rel_tol=1e-6)
  return bool(one == other)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f"{text[:77]}..."
