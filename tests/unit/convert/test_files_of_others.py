"""Weight files as other programs leave them: what is taken of each, and what is said.

One row a kind. Values of the miniature go in under other names, with company or in other files; the
command's `import` must give the right ones, or one line that says what a person can do.
"""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import shutil

from absl import logging
import checkpoints
from commands import command
from ml_dtypes import bfloat16
import numpy as np
import pytest

from blip3o_jax import trees
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.weights import store

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
POINTER = (
  "version https://git-lfs.github.com/spec/v1\n"
  "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4968243304\n"
)
ASKED = ("--only", "backbone,generation")
Values = checkpoints.Values
# What is looked at: a stacked matrix, the head, the queries.
LOOKED_AT = {
  "backbone/layers/mlp/up_proj/kernel": "model.layers.1.mlp.up_proj.weight",
  "backbone/norm/scale": "model.norm.weight",
  "slots/embedding": "model.latent_queries",
}


def save(source: Path, values: Values) -> None:
  """In two shards with an index."""
  checkpoints.write(source, values, shards=2)


def index(source: Path, change: Callable[[dict], None]) -> None:
  found = json.loads((source / INDEX).read_text())
  change(found)
  (source / INDEX).write_text(json.dumps(found))


def tied(source: Path, values: Values) -> None:
  """A head that the index still lists and no shard holds."""
  save(source, {n: v for n, v in values.items() if n != HEAD})
  index(source, lambda found: found["weight_map"].update({HEAD: FIRST}))
  checkpoints.edit(source / "config.json", tie_word_embeddings=True)


def twin(source: Path, values: Values) -> None:
  """An older copy of a tensor in the shard that the index does not name."""
  save(source, values)
  places = json.loads((source / INDEX).read_text())["weight_map"]
  old = "model.norm.weight"
  other = FIRST if places[old] == SECOND else SECOND
  held = {n: v for n, v in values.items() if places[n] == other} | {old: values[old] + 7}
  checkpoints.save_file(held, source / other, metadata={"format": "pt"})


def unlisted(source: Path, values: Values) -> None:
  save(source, values)
  (source / INDEX).unlink()


def left_behind(source: Path, values: Values) -> None:
  """An index whose shards were joined to one file."""
  save(source, values)
  text = (source / INDEX).read_text()
  checkpoints.write(source, values)
  (source / INDEX).write_text(text)


def without_metadata(source: Path, values: Values) -> None:
  save(source, values)
  index(source, lambda found: found.update(metadata=None))


@dataclasses.dataclass(frozen=True)
class Row:
  """Attributes: make: of (source, values) the files. says: in what is said. options: of import.
  average: whether the shifted values are expected."""

  make: Callable[[Path, Values], None]
  says: str = ""
  options: tuple[str, ...] = ()
  average: bool = False


def beside(prefix: str, own: str = "") -> Callable[[Path, Values], None]:
  """Files with the model, under `own`, and its average under a prefix."""
  counters = {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int64(7)}
  more = counters if prefix == "model_ema." else {}
  return lambda s, v: save(
    s, checkpoints.under(own, v) | checkpoints.under(prefix, checkpoints.shifted(v)) | more
  )


def prefixed(prefix: str, **more: np.ndarray) -> Callable[[Path, Values], None]:
  return lambda s, v: save(s, checkpoints.under(prefix, v) | more)


TAKEN: dict[str, Row] = {
  "ema. beside the model": Row(beside("ema."), "average, 'ema' ("),
  "ema. asked for": Row(beside("ema."), "the average 'ema' is taken", ("--weights", "ema"), True),
  "model_ema. with counters": Row(beside("model_ema."), "'model_ema' ("),
  "a nested dict made flat": Row(beside("ema.", "model."), "model. is taken off the names"),
  "its average": Row(
    beside("ema.model.", "model."), "'ema' is taken", ("--weights", "ema"), average=True
  ),
  "an average alone": Row(
    lambda s, v: save(s, checkpoints.under("ema_model.", checkpoints.shifted(v))),
    "'ema_model' is taken",
    average=True,
  ),
  "compiled": Row(prefixed("_orig_mod."), "_orig_mod. is taken off"),
  "data parallel": Row(prefixed("module."), "module. is taken off"),
  "averaged by torch": Row(prefixed("module.", n_averaged=np.int64(3)), "module. is taken off"),
  "FSDP, compiled": Row(prefixed("_fsdp_wrapped_module._orig_mod."), "_fsdp_wrapped_module. and"),
  "peft, merged": Row(prefixed("base_model.model."), "base_model.model. is taken off"),
  "DeepSpeed, compiled": Row(prefixed("module._orig_mod."), "module. and _orig_mod. is"),
  "layers wrapped one by one": Row(
    lambda s, v: save(s, {n.replace("mlp.", "mlp._checkpoint_wrapped_module."): v[n] for n in v}),
    "_checkpoint_wrapped_module. is taken off",
  ),
  "a prefix of no framework": Row(prefixed("mllm.net."), "mllm.net. is taken off"),
  "a tied head in the index alone": Row(tied),
  "a stale twin": Row(twin),
  "metadata null": Row(without_metadata),
  "shards without an index": Row(unlisted),
  "an index left behind": Row(left_behind),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_right_values_come_in_and_go_out(kind, bare, values, tmp_path, capsys):
  row, convert = TAKEN[kind], command("convert")
  row.make(bare, values)
  out = tmp_path / "out"
  options = (*ASKED, *row.options)
  assert convert("import", "--source", bare, "--output", out, *options) == 0
  said = capsys.readouterr().err
  assert row.says in said
  if not row.says:
    assert "left out" not in said
    assert "taken off" not in said
  wanted = checkpoints.shifted(values) if row.average else values
  arrays = store.Arrays(out)
  for path, name in LOOKED_AT.items():
    whole = arrays.read(path, tuple(slice(0, n) for n in arrays[path]))
    ours = whole[1].T if "layers" in path else whole
    np.testing.assert_array_equal(ours, wanted[name], err_msg=path)
  assert convert("export", "--source", out, "--output", tmp_path / "back") == 0
  again = checkpoints.tensors(tmp_path / "back")
  names = set(wanted) - ({HEAD} if "tied" in kind else set())
  assert set(again) == names
  assert all(np.array_equal(again[n], wanted[n]) for n in names)
  if (tmp_path / "back" / INDEX).exists():
    found = json.loads((tmp_path / "back" / INDEX).read_text())
    assert found["metadata"]["total_size"] == sum(v.nbytes for v in again.values())


# Loading ------------------------------------------------------------------------------------------


LOADED = (
  "ema. beside the model",
  "DeepSpeed, compiled",
  "a prefix of no framework",
  "a tied head in the index alone",
  "a stale twin",
  "shards without an index",
)


@pytest.mark.parametrize("kind", LOADED)
def test_loading_takes_what_import_takes(kind, bare, caplog):
  logging.set_verbosity(logging.WARNING)  # the converting command wants errors alone
  row, found = TAKEN[kind], checkpoints.tensors()
  row.make(bare, found)
  params = trees.flatten(verbs.load(bare).system.params)
  assert row.says in caplog.text
  for path, name in LOOKED_AT.items():
    ours = params[path][1].T if "layers" in path else params[path]
    np.testing.assert_array_equal(np.asarray(ours), found[name], err_msg=path)


def test_layers_of_several_dtypes_under_a_prefix_are_loaded(bare):
  """As numpy they have no common dtype; float32 holds the values of both."""
  found = checkpoints.tensors()
  kinds = {"model.layers.0.": np.float16, "model.layers.1.": bfloat16}
  for start, kind in kinds.items():
    found |= {n: v.astype(kind) for n, v in found.items() if n.startswith(start)}
  save(
    bare,
    checkpoints.under("module.", found) | checkpoints.under("ema.", {"x": np.ones(3, np.float32)}),
  )
  model = verbs.load(bare)
  stack = trees.flatten(model.system.params)["backbone/layers/mlp/up_proj/kernel"]
  for i in range(3):
    own = found[f"model.layers.{i}.mlp.up_proj.weight"]
    np.testing.assert_array_equal(np.asarray(stack[i]).T, own.astype(np.float32))


# Refused ------------------------------------------------------------------------------------------


def pointer(name: str) -> Callable[[Path, Values], None]:
  def make(source: Path, values: Values) -> None:
    save(source, values)
    (source / name).write_text(POINTER)

  return make


def too_large(source: Path, values: Values) -> None:
  large = values["model.norm.weight"].copy()
  large[3] = 70000
  save(source, values | {"model.norm.weight": large})


def absent(source: Path, values: Values) -> None:
  save(source, {n: v for n, v in values.items() if n != "model.norm.weight"})
  index(source, lambda found: found["weight_map"].update({"model.norm.weight": FIRST}))


def two_sets(source: Path, values: Values) -> None:
  left_behind(source, values)
  shutil.copy(source / "model.safetensors", source / FIRST)


def page(source: Path, values: Values) -> None:
  save(source, values)
  (source / FIRST).write_text("<!DOCTYPE html><html>sign in</html>" * 9)


def unlisted_half(source: Path, values: Values) -> None:
  unlisted(source, values)
  (source / SECOND).unlink()


def elsewhere(source: Path, values: Values) -> None:
  checkpoints.save_file(values, source / "pytorch_lora_final.safetensors")


ADAPTER = "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
REFUSED: dict[str, tuple[Callable[[Path, Values], None], tuple[str, ...], str]] = {
  "names of another model": (
    lambda s, v: save(s, {f"net.h.{i}.attn": np.ones(3, np.float32) for i in range(9)}),
    (),
    r"no tensor has a name that is known: of 9 all begin with net\.h\.; expected ",
  ),
  "a pickle under a name of safetensors": (
    lambda s, v: (s / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(99)),
    (),
    r"no safetensors but a file of torch\.save; name it pytorch_model\.bin",
  ),
  "safetensors under a name of pickles": (
    lambda s, v: (
      checkpoints.write(s, v),
      (s / "model.safetensors").rename(s / "pytorch_model.bin"),
    ),
    ("--allow-pickle",),
    "pytorch_model.bin: no pickle but safetensors by its content",
  ),
  "adapters": (
    lambda s, v: save(
      s, checkpoints.under("base_model.model.", v) | {ADAPTER: np.ones((4, 64), np.float32)}
    ),
    (),
    r"holds 1 tensors of adapters such as .*lora_A.*merge them \(peft: merge_and_unload\)",
  ),
  "two names that become one": (
    lambda s, v: save(s, v | {f"_orig_mod.{HEAD}": v[HEAD]}),
    (),
    f"two tensors become {HEAD} when",
  ),
  "a table that is not there": (
    lambda s, v: save(s, v),
    ("--weights", "swa"),
    "--weights swa: no file of .* a table of that name",
  ),
  "half the shards, no index": (
    unlisted_half,
    (),
    f"no index, and of the 2 shards .* {SECOND} is absent; fetch",
  ),
  "two sets of weights": (two_sets, (), "two sets of weights, model.safetensors and the shards of"),
  "a needed tensor in the index alone": (
    absent,
    (),
    "missing model.norm.weight, needed by backbone/norm/scale",
  ),
  "weights of another name": (
    elsewhere,
    (),
    r"there is pytorch_lora_final\.safetensors, and weights are read under the names",
  ),
  "a pointer for a shard": (
    pointer(SECOND),
    (),
    rf"{SECOND}: a git-lfs pointer, .* of 4\.97 GB .* git lfs pull, or .*hf down",
  ),
  "a pointer for the index": (pointer(INDEX), (), f"{INDEX}: a git-lfs pointer"),
  "a pointer for a config": (pointer("config.json"), (), "config.json: a git-lfs pointer"),
  "a page for a shard": (page, (), f"{FIRST}: a web page, not the file"),
  "float16 too small": (
    too_large,
    ("--dtype", "float16"),
    r"model\.norm\.weight: float16 cannot hold 7e\+04, .* the cast would make 1 infinite",
  ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_line_says_what_it_is(kind, bare, values, tmp_path, capsys):
  make, options, message = REFUSED[kind]
  make(bare, values)
  convert, out = command("convert"), tmp_path / "out"
  assert convert("import", "--source", bare, "--output", out, *ASKED, *options) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  error = " ".join(lines[[line.startswith("blip3o convert:") for line in lines].index(True) :])
  assert len(error) < 1000
  with pytest.raises(ValueError, match=message):
    raise ValueError(error)
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_export_whose_cast_overflows(bare, values, tmp_path, capsys):
  too_large(bare, values)
  convert = command("convert")
  assert convert("import", "--source", bare, "--output", tmp_path / "a", *ASKED) == 0
  done = convert(
    "export", "--source", tmp_path / "a", "--output", tmp_path / "b", "--dtype", "float16"
  )
  assert done == 1
  assert "model.norm.weight: float16 cannot hold 7e+04" in capsys.readouterr().err
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_pointer_for_a_file_that_is_loaded(name, bare, values):
  save(bare, values)
  (bare / name).write_text(POINTER)
  with pytest.raises(ValueError, match=f"{name}: a git-lfs pointer"):
    verbs.load(bare)
