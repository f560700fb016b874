"""Weight files as other programs leave them: what is taken of each, and what is said.

One row a kind. Values of the miniature go in under other names, with company or in other files; the
command's `import` must give the right ones, or one line that says what a person can do.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import shutil

import checkpoints
from commands import command
from ml_dtypes import bfloat16
import numpy as np
import pytest

import blip3o_jax
from blip3o_jax import trees
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


@pytest.fixture(scope="module")
def values() -> Values:
  """The tensors that the rows are about, those of the language model and the generator."""
  left_out = ("visual.", "model.gen_")
  return {n: v for n, v in checkpoints.tensors().items() if not n.startswith(left_out)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
  """The miniature's JSON files, without weights."""
  leave = shutil.ignore_patterns("*.safetensors*", "eva_clip_vision_tower", "diffusion-decoder")
  shutil.copytree(checkpoints.TINY, tmp_path / "source", ignore=leave)
  return tmp_path / "source"


def shifted(values: Values) -> Values:
  """Other values under the same names: an average."""
  return {name: (v + 1).astype(v.dtype) for name, v in values.items()}


def under(prefix: str, values: Values) -> Values:
  return {prefix + name: v for name, v in values.items()}


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


def bare(source: Path, values: Values) -> None:
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
  return lambda s, v: save(s, under(own, v) | under(prefix, shifted(v)) | more)


def prefixed(prefix: str, **more: np.ndarray) -> Callable[[Path, Values], None]:
  return lambda s, v: save(s, under(prefix, v) | more)


TAKEN: dict[str, Row] = {
  "ema. beside the model": Row(beside("ema."), "average, 'ema' ("),
  "ema. asked for": Row(beside("ema."), "the average 'ema' is taken", ("--weights", "ema"), True),
  "model_ema. with counters": Row(beside("model_ema."), "'model_ema' ("),
  "a nested dict made flat": Row(beside("ema.", "model."), "model. is taken off the names"),
  "its average": Row(
    beside("ema.model.", "model."), "'ema' is taken", ("--weights", "ema"), average=True
  ),
  "an average alone": Row(
    lambda s, v: save(s, under("ema_model.", shifted(v))), "'ema_model' is taken", average=True
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
  "metadata null": Row(bare),
  "shards without an index": Row(unlisted),
  "an index left behind": Row(left_behind),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_right_values_come_in_and_go_out(kind, source, values, tmp_path, capsys):
  row, convert = TAKEN[kind], command("convert")
  row.make(source, values)
  out = tmp_path / "out"
  options = (*ASKED, *row.options)
  assert convert("import", "--source", source, "--output", out, *options) == 0
  said = capsys.readouterr().err
  assert row.says in said
  if not row.says:
    assert "left out" not in said
    assert "taken off" not in said
  wanted = shifted(values) if row.average else values
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


def test_layers_of_several_dtypes_under_a_prefix_are_loaded(source):
  """As numpy they have no common dtype; float32 holds the values of both."""
  found = checkpoints.tensors()
  kinds = {"model.layers.0.": np.float16, "model.layers.1.": bfloat16}
  for start, kind in kinds.items():
    found |= {n: v.astype(kind) for n, v in found.items() if n.startswith(start)}
  save(source, under("module.", found) | under("ema.", {"x": np.ones(3, np.float32)}))
  model = blip3o_jax.load(source)
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
    lambda s, v: save(s, under("base_model.model.", v) | {ADAPTER: np.ones((4, 64), np.float32)}),
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
def test_one_line_says_what_it_is(kind, source, values, tmp_path, capsys):
  make, options, message = REFUSED[kind]
  make(source, values)
  convert, out = command("convert"), tmp_path / "out"
  assert convert("import", "--source", source, "--output", out, *ASKED, *options) == 1
  lines = capsys.readouterr().err.strip().splitlines()
  error = " ".join(lines[[line.startswith("error:") for line in lines].index(True) :])
  assert len(error) < 1000
  with pytest.raises(ValueError, match=message):
    raise ValueError(error)
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_export_whose_cast_overflows(source, values, tmp_path, capsys):
  too_large(source, values)
  convert = command("convert")
  assert convert("import", "--source", source, "--output", tmp_path / "a", *ASKED) == 0
  done = convert(
    "export", "--source", tmp_path / "a", "--output", tmp_path / "b", "--dtype", "float16"
  )
  assert done == 1
  assert "model.norm.weight: float16 cannot hold 7e+04" in capsys.readouterr().err
  assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_pointer_for_a_file_that_is_loaded(name, source, values):
  save(source, values)
  (source / name).write_text(POINTER)
  with pytest.raises(ValueError, match=f"{name}: a git-lfs pointer"):
    blip3o_jax.load(source)


# Pickles, and a tower inside a CLIP ---------------------------------------------------------------


def pickled(source: Path, made: object, name: str = "pytorch_model.bin") -> None:
  import torch

  def tensors(node: object) -> object:
    if isinstance(node, dict):
      return {k: tensors(v) for k, v in node.items()}
    return torch.from_numpy(np.array(node)) if isinstance(node, np.ndarray) else node

  torch.save(tensors(made), source / name)


def optimizer(values: Values) -> dict[str, object]:
  return {"state": {0: {"exp_avg": values["model.norm.weight"]}}, "param_groups": [{"lr": 0.1}]}


Nested = Callable[[Values], object]
PICKLES: dict[str, tuple[Nested, tuple[str, ...], str, bool]] = {
  "model and ema": (
    lambda v: {
      "model": v,
      "ema": shifted(v),
      "step": 3,
      "args": argparse.Namespace(lr=np.float64(1)),
    },
    (),
    "an average, 'ema' (",
    False,
  ),
  "its ema": (
    lambda v: {"model": v, "ema": shifted(v)},
    ("--weights", "ema"),
    "'ema' is taken, not 'mod",
    True,
  ),
  "state_dict and ema_state_dict": (
    lambda v: {"state_dict": v, "ema_state_dict": shifted(v), "epoch": 1},
    (),
    "an average, 'ema_state_dict' (",
    False,
  ),
  "an average in a table of its own": (
    lambda v: {"model": v, "ema": {"decay": 0.9, "shadow": shifted(v)}},
    ("--weights", "ema"),
    "'ema.shadow' is taken",
    True,
  ),
  "an average without names": (
    lambda v: {"model": v, "ema": {"shadow_params": [1.0]}},
    (),
    "'ema' beside the model has no",
    False,
  ),
  "an average among the tensors of Lightning": (
    lambda v: {
      "state_dict": under("model.", v) | under("model_ema.", shifted(v)),
      "callbacks": {"x": {"best": v[HEAD]}},
      "optimizer_states": {"0": optimizer(v)},
    },
    ("--weights", "model_ema"),
    "the average 'model_ema' is taken",
    True,
  ),
  "DeepSpeed's model states": (
    lambda v: {
      "module": under("module.", v),
      "optimizer": optimizer(v),
      "buffer_names": ["x"],
      "param_shapes": {"x": [3, 4]},
      **{f"more_{i}": i for i in range(12)},
    },
    (),
    "module. is taken off",
    False,
  ),
  "one of two, by name": (
    lambda v: {"generator": v, "critic": {"w": v[HEAD]}},
    ("--weights", "generator"),
    "'generator' is taken, not 'critic'",
    False,
  ),
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", PICKLES)
def test_the_right_table_of_a_pickle(kind, source, values, tmp_path, capsys):
  pytest.importorskip("torch")
  make, options, says, average = PICKLES[kind]
  pickled(source, make(values))
  out = tmp_path / "out"
  done = command("convert")(
    "import", "--source", source, "--output", out, *ASKED, "--allow-pickle", *options
  )
  assert done == 0
  assert says in capsys.readouterr().err
  wanted = shifted(values) if average else values
  np.testing.assert_array_equal(
    store.Arrays(out).read("backbone/norm/scale", (slice(0, 64),)), wanted["model.norm.weight"]
  )


@pytest.mark.torch
@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda v: {"generator": v, "critic": {"w": v[HEAD]}},
      r"several tables of tensors, 'generator' \(\d+ tensors\), 'critic' \(1 .*--weights NAME",
    ),
    (lambda v: {"module": v | {HEAD: np.zeros(0, np.float32)}}, "ZeRO 3.*zero_to_fp32.py"),
    (lambda v: {"model": v, "module": v}, "several tables of tensors, 'model'"),
  ],
)
def test_a_pickle_whose_table_is_not_known(make, message, source, values, tmp_path, capsys):
  pytest.importorskip("torch")
  pickled(source, make(values))
  options = ("--source", source, "--output", tmp_path / "out", "--allow-pickle", *ASKED)
  assert command("convert")("import", *options) == 1
  error = capsys.readouterr().err.strip()
  assert "\n" not in error
  with pytest.raises(ValueError, match=message):
    raise ValueError(error)


@pytest.mark.torch
def test_a_plain_qwen_pickled_by_torch_before_1_6(tmp_path):
  """Its names are behind a training script's, and it is no archive."""
  torch = pytest.importorskip("torch")
  source = checkpoints.plain_qwen(tmp_path / "source", tied=True)
  found = {n: v.astype(np.float32) for n, v in checkpoints.tensors(source).items()}
  for file in source.glob("model*"):
    file.unlink()
  convert = command("convert")
  for old in (False, True):
    made = {"model": {f"module.{n}": torch.from_numpy(v) for n, v in found.items()}, "epoch": 3}
    file = source / "pytorch_model.bin"
    torch.save(made, file, _use_new_zipfile_serialization=not old)
    out = tmp_path / f"out{old}"
    options = ("--allow-pickle", "--vocab-size", "keep", "--only", "backbone")
    assert convert("import", "--source", source, "--output", out, *options) == 0
    got = store.Arrays(out).read("backbone/norm/scale", (slice(0, 64),))
    np.testing.assert_array_equal(got, found["model.norm.weight"])


@pytest.mark.torch
def test_shards_of_pickles(source, values, tmp_path):
  """A stale twin in one of them; with the index that says which counts, and without any index."""
  pytest.importorskip("torch")
  old, names = "model.norm.weight", sorted(values)
  halves = [{n: values[n] for n in names[i::2]} for i in (0, 1)]
  own = next(i for i, half in enumerate(halves) if old in half)
  files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
  for half, file in zip(halves, files, strict=True):
    pickled(source, half, file)
  convert = command("convert")
  options = ("import", "--source", source, *ASKED, "--allow-pickle", "--output")
  assert convert(*options, tmp_path / "unlisted") == 0
  pickled(source, halves[1 - own] | {old: values[old] + 7}, files[1 - own])
  places = {n: file for half, file in zip(halves, files, strict=True) for n in half}
  (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
  assert convert(*options, tmp_path / "listed") == 0
  for out in ("unlisted", "listed"):
    found = store.Arrays(tmp_path / out).read("backbone/norm/scale", (slice(0, 64),))
    np.testing.assert_array_equal(found, values[old])


@pytest.mark.parametrize("prefix", ["model.vision.", checkpoints.TOWER])
def test_a_tower_under_the_names_of_a_model(prefix, tmp_path, capsys):
  found = {
    n.replace(checkpoints.TOWER, prefix): v
    for n, v in checkpoints.tensors().items()
    if n.startswith(checkpoints.TOWER)
  }
  source, out = tmp_path / "source", tmp_path / "out"
  checkpoints.write(source, found)
  shutil.copy(checkpoints.TINY / "eva_clip_vision_tower" / "config.json", source)
  assert command("convert")("import", "--source", source, "--output", out) == 0
  assert f"{prefix} is taken off the names" in capsys.readouterr().err
  got = store.Arrays(out).read("encoder/tower/cls_token", (slice(None),) * 3)
  np.testing.assert_array_equal(got, found[f"{prefix}cls_token"])


@pytest.mark.parametrize("own", ["model_type", "vision_cfg", ""])
def test_the_tower_of_a_whole_clip(own, tmp_path, capsys):
  """Beside a model, with a config of its own, and with sizes alone."""
  found = {
    n.removeprefix(checkpoints.TOWER): v
    for n, v in checkpoints.tensors().items()
    if n.startswith(checkpoints.TOWER)
  }
  more = {"logit_scale": 4.6, "text.ln_final.weight": 1.0, "visual.head.weight": 2.0}
  clip = under("visual.", found) | {n: np.float32([x]) for n, x in more.items()}
  home = source = tmp_path / "source"
  if own == "model_type":
    checkpoints.copy(source, decoder=False)
    kept = {n: v for n, v in checkpoints.tensors().items() if not n.startswith(checkpoints.TOWER)}
    checkpoints.write(source, kept)
    home = source / "eva_clip_vision_tower"
  checkpoints.write(home, clip)
  if own == "vision_cfg":
    shutil.copy(checkpoints.TINY / "eva_clip_vision_tower" / "config.json", source)
  elif not own:
    shutil.copy(checkpoints.TINY / "tiny.json", source)
  convert, out = command("convert"), tmp_path / "out"
  assert convert("import", "--source", source, "--output", out, "--only", "encoder") == 0
  said = capsys.readouterr().err
  assert "dropped: text.ln_final, 1 tensor(s), of a CLIP, whose tower alone is read" in said
  assert "dropped: visual.head, 1 tensor(s), of a CLIP's output" in said
  got = store.Arrays(out).read("encoder/tower/cls_token", (slice(None),) * 3)
  np.testing.assert_array_equal(got, found["cls_token"])
  if own == "model_type":
    tower = trees.flatten(blip3o_jax.load(source).system.params)["encoder/tower/cls_token"]
    np.testing.assert_array_equal(tower, found["cls_token"])
