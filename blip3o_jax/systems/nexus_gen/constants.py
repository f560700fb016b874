"""The null condition: what FLUX's two text encoders say of the empty text.

CLIP's pooled vector of it stands in every call, T5's features are the absence of a condition. Both
are constants: computed once from the encoders, and kept in a file beside the model (Nexus-Gen spec
5.2, 5.3).
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
import dataclasses
from pathlib import Path
import threading
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.models import clip_text
from blip3o_jax.models import t5_encoder
from blip3o_jax.systems.parts import known
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import opened
from blip3o_jax.systems.parts.known import Json
from blip3o_jax.systems.parts.known import Known
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import clip_text as clip_rows
from blip3o_jax.weights.rows import t5_encoder as t5_rows

STEM = "null_condition"  # of the file: tensors pooled [P] and context [S, C]
TOKENS = 512  # that FLUX pads a text to, for T5
CLIP, T5 = "text_encoder", "text_encoder_2"  # their folders in FLUX.1-dev
EOS, PAD = 1, 0  # of T5's tokenizer, where its config does not say

CLIP_CONFIG = Known(
  read={
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), int),
    **dict.fromkeys(("num_attention_heads", "max_position_embeddings"), int),
    "layer_norm_eps": float,
  },
  fixed={**known.TRANSFORMERS_FIXED, "hidden_act": ("quick_gelu", "gelu")},
  free=(*known.TRANSFORMERS, "dropout", "initializer_factor", "projection_dim"),
)
T5_CONFIG = Known(
  read={
    **dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"), int),
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), int),
    **dict.fromkeys(("eos_token_id", "pad_token_id"), int),
    "layer_norm_epsilon": float,
  },
  fixed={
    "dense_act_fn": ("gelu_new",),
    "feed_forward_proj": ("gated-gelu",),
    "is_gated_act": (True,),
    "pruned_heads": ({},),
  },
  # Of its decoder and of training.
  free=(*known.TRANSFORMERS, "add_cross_attention", "classifier_dropout", "dropout_rate",
        "initializer_factor", "is_encoder_decoder", "n_positions", "num_decoder_layers",
        "scale_decoder_outputs", "tie_word_embeddings"),
  unset={"feed_forward_proj": "relu"},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Encoder:
  """One text encoder of a folder, as `opened` reads it.

  Attributes:
    build: of the module. rows: of its names. ties: see `layout.Part`. ignore: see there.
  """

  build: Callable[[nnx.Rngs], nnx.Module]
  rows: tuple[table.Row, ...]
  ties: dict[str, str]
  ignore: dict[str, str]

  def parts(self, files: layout.Files) -> layout.Layout:
    """See `layout.Describes`."""
    del files
    shapes = layout.shapes(self.build, "text/")
    part = layout.Part("text", "", layout.MAIN, ("text",), shapes, self.ignore, self.ties)
    return layout.Layout(None, (part,))

  def rows_of(self, kind: str, names: Collection[str], home: Path) -> list[table.Row]:
    """See `layout.Describes`."""
    del kind, names, home
    return table.prefixed(self.rows, "", "text/")

  def read(self, directory: Path) -> Any:
    """The module, its parameters as they are stored: T5's are large.

    Raises:
      FileNotFoundError, ValueError: see `opened.fitting`; a parameter that no tensor fills.
    """
    graphdef, state = nnx.split(layers.abstract(self.build))
    flat = trees.flatten(nnx.to_pure_dict(state))
    wanted = {f"text/{path}": tuple(leaf.shape) for path, leaf in flat.items()}
    found = opened.fitting(self, directory, wanted)
    if absent := [path for path in wanted if path not in found]:
      raise ValueError(f"{directory}: nothing fills {absent[0]}")

    def array(path: str) -> jax.Array:
      whole = tuple(slice(0, n) for n in wanted[f"text/{path}"])
      return jnp.asarray(found.read(f"text/{path}", whole))

    return nnx.merge(graphdef, trees.unflatten({path: array(path) for path in flat}))


def clip_config(directory: Path) -> clip_text.Config:
  """The text encoder of a folder with a config.json of transformers' CLIPTextModel.

  Raises:
    FileNotFoundError: no config.json. ValueError: a field that is absent or not built, by name.
  """
  values, where = _values(directory, CLIP_CONFIG)

  def make(given: Json) -> clip_text.Config:
    return clip_text.Config(
      vocab_size=given["vocab_size"],
      length=given["max_position_embeddings"],
      dim=given["hidden_size"],
      depth=given["num_hidden_layers"],
      heads=given["num_attention_heads"],
      mlp_dim=given["intermediate_size"],
      activation=given.get("hidden_act", "quick_gelu"),
      norm_eps=given.get("layer_norm_eps", 1e-5),
    )

  return _made(make, values, where)


def t5_config(directory: Path) -> t5_encoder.Config:
  """The encoder of a folder with a config.json of transformers' T5EncoderModel.

  Raises:
    FileNotFoundError: no config.json. ValueError: a field that is absent or not built, by name.
  """
  values, where = _values(directory, T5_CONFIG)

  def make(given: Json) -> t5_encoder.Config:
    return t5_encoder.Config(
      vocab_size=given["vocab_size"],
      dim=given["d_model"],
      depth=given["num_layers"],
      heads=given["num_heads"],
      head_dim=given["d_kv"],
      mlp_dim=given["d_ff"],
      buckets=given.get("relative_attention_num_buckets", 32),
      max_distance=given.get("relative_attention_max_distance", 128),
      norm_eps=given.get("layer_norm_epsilon", 1e-6),
    )

  return _made(make, values, where)


def _values(directory: Path, fields: Known) -> tuple[Json, str]:
  """(the fields of a folder's config.json, the file)."""
  where = directory / "config.json"
  if not where.is_file():
    raise FileNotFoundError(f"{directory}: no config.json of a text encoder")
  return fields.check(str(where), layout.Files(directory).json("config.json")), str(where)


def _made(make: Callable[[Json], Any], values: Json, where: str) -> Any:
  """A Config of fields; a field that it lacks and a size that does not fit are named."""
  try:
    return make(values)
  except KeyError as error:
    raise ValueError(f"{where}: lacks the field {error}") from None
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None


def pooled(directory: Path) -> np.ndarray:
  """CLIP's pooled vector of the empty text, float32[P].

  Args:
    directory: FLUX.1-dev's `text_encoder`.

  Raises:
    FileNotFoundError, ValueError: what is absent or does not fit.
  """
  cfg = clip_config(directory)
  # What is read is where the text ends, and no later token is seen there: padding is left out.
  # The vocabulary's last two tokens begin and end a text; its config.json does not say so.
  tokens = jnp.asarray([[cfg.vocab_size - 2, cfg.vocab_size - 1]])
  buffers = {r"(.*\.)?position_ids": "a buffer that older versions of transformers saved"}
  rows = tuple(clip_rows.released_rows())
  encoder = _Encoder(lambda rngs: clip_text.ClipText(cfg, rngs=rngs), rows, {}, buffers)
  run = jax.jit(lambda tower, ids: tower(ids, jnp.ones_like(ids)))
  return np.asarray(run(encoder.read(directory), tokens)[0], np.float32)


def context(directory: Path, tokens: int = TOKENS) -> np.ndarray:
  """T5's features of the empty text with its padding, which nothing masks, float32[tokens, C].

  Args:
    directory: FLUX.1-dev's `text_encoder_2`.

  Raises:
    FileNotFoundError, ValueError: what is absent or does not fit.
  """
  said, _ = _values(directory, T5_CONFIG)
  ids = [said.get("eos_token_id", EOS)] + [said.get("pad_token_id", PAD)] * (tokens - 1)
  run = jax.jit(lambda encoder, ids: encoder(ids))
  return np.asarray(run(t5(directory), jnp.asarray([ids]))[0], np.float32)


def t5(directory: Path) -> t5_encoder.T5Encoder:
  """The encoder of a folder with its parameters as they are stored.

  Raises:
    FileNotFoundError, ValueError: what is absent or does not fit.
  """
  cfg, rows = t5_config(directory), tuple(t5_rows.rows())
  encoder = _Encoder(lambda rngs: t5_encoder.T5Encoder(cfg, rngs=rngs), rows, t5_rows.TIES, {})
  found: t5_encoder.T5Encoder = encoder.read(directory)
  return found


def write(clip: Path, second: Path, output: Path, tokens: int = TOKENS) -> None:
  """Writes the file of the null condition from FLUX.1-dev's two text encoders.

  Raises:
    FileNotFoundError, ValueError: what is absent or does not fit.
  """
  made = {"pooled": pooled(clip), "context": context(second, tokens)}
  safetensors.save(made, output, {"format": "pt"})


class Computed(table.Reader):
  """The file of the null condition as it would be: computed when a tensor of it is looked at.

  Args:
    files: of the model's directory. clip, second: the encoders' folders. tokens: of the context.

  Raises:
    FileNotFoundError, ValueError: see `clip_config` and `t5_config`.
  """

  def __init__(self, files: layout.Files, clip: Path, second: Path, tokens: int):
    self._file = files.directory / f"{STEM}.safetensors"
    self.files: dict[Path, dict[str, str]] = {self._file: {"format": "pt"}}
    self.index = None
    self.notes = (f"{self._file.name}: computed from {clip} and {second}",)
    self._make = {"pooled": lambda: pooled(clip), "context": lambda: context(second, tokens)}
    self._shapes = {"pooled": (clip_config(clip).dim,), "context": (tokens, t5_config(second).dim)}
    self._held: dict[str, np.ndarray] = {}
    self._lock = threading.Lock()

  def __getitem__(self, name: str) -> table.Shape:
    return self._shapes[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)

  def dtype(self, name: str) -> np.dtype:
    """Of both float32."""
    del name
    return np.dtype(np.float32)

  def where(self, name: str) -> tuple[Path, int]:
    """The file that they would be in, and which one it is."""
    return self._file, list(self._shapes).index(name)

  def view(self, name: str) -> np.ndarray:
    """One of the two, computed once."""
    with self._lock:
      if name not in self._held:
        self._held[name] = self._make[name]()
      return self._held[name]


def absent(directory: Path) -> str:
  """Says of a directory without a null condition that it has none, and how to make it."""
  return (
    f"{directory}: no null condition ({STEM}.safetensors: CLIP's pooled vector and T5's features "
    "of the empty text), without which no picture is painted. Make it once from FLUX.1-dev: python "
    f"tools/null_condition.py --clip FLUX.1-dev/{CLIP} --t5 FLUX.1-dev/{T5} --output "
    f"{directory / STEM}.safetensors; or put these two folders (or FLUX.1-dev) into the model's, "
    "and blip3o convert import makes it"
  )
