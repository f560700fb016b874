"""generation_config.json of transformers: how an answer's ids are chosen, and what ends it.

A field that is absent has the value of transformers' class; null is absent.
"""

import dataclasses
from pathlib import Path
from typing import Any

from blip3o_jax import files
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts.known import Known

FILE = "generation_config.json"
# Released files ask for a draw at 1e-6, where float32 leaves no choice but the likeliest id.
COLD = 1e-5
DEFAULTS: dict[str, Any] = {
  "do_sample": False,
  "repetition_penalty": 1.0,
  "temperature": 1.0,
  "top_k": 50,
  "top_p": 1.0,
}
FIELDS = Known(
  read={
    **dict.fromkeys(("repetition_penalty", "temperature", "top_p"), float),
    "do_sample": bool,
    "top_k": int,
  },
  fixed={
    **dict.fromkeys(("diversity_penalty", "epsilon_cutoff", "eta_cutoff", "min_p"), (0.0,)),
    **dict.fromkeys(("encoder_repetition_penalty", "typical_p"), (1.0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("bad_words_ids", "begin_suppress_tokens", "suppress_tokens"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), (None,)),
    "remove_invalid_values": (False,),
  },
  # Lengths are said by who asks; beams alone read the next ones; the rest says how to compute.
  free=(
    *("_*", "transformers_version", "*_token_id", "max_length", "max_new_tokens", "max_time"),
    *("early_stopping", "length_penalty", "renormalize_logits", "use_cache"),
    *("cache_*", "return_*", "output_*", "is_assistant", "num_assistant_tokens*"),
    *("assistant_*", "max_matching_ngram_size", "prompt_lookup_*", "target_lookahead"),
    *("compile_config", "disable_compile", "low_memory", "continuous_batching_*"),
    *("prefill_chunk_size", "token_healing", "trust_remote_code", "use_model_defaults"),
  ),
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """How ids are chosen unless an answer is asked for in another way.

  Attributes:
    temperature: 0 takes the likeliest. limits: the penalty of repetition, top_k and top_p.
    ends: ids that end an answer; empty where the file does not say.
  """

  temperature: float = 0.0
  limits: decoding.Limits = decoding.Limits()
  ends: tuple[int, ...] = ()


def read(directory: str | Path) -> Choice | None:
  """The choice that a directory's file describes; None without one.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by file and name.
  """
  path = Path(directory) / FILE
  if not path.is_file():
    return None
  values = files.read_json(path)
  found = DEFAULTS | FIELDS.check(str(path), values)
  ends = values.get("eos_token_id")
  ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
  if not all(isinstance(end, int) and end >= 0 for end in ends):
    raise ValueError(f"{path}: eos_token_id {ends!r}: expected an id or a list of them")
  draws = found["do_sample"] and found["temperature"] > COLD
  try:
    limits = decoding.Limits(
      top_k=found["top_k"] if draws else 0,
      top_p=found["top_p"] if draws else 1.0,
      penalty=found["repetition_penalty"],
    )
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  return Choice(found["temperature"] if draws else 0.0, limits, tuple(ends))
