"""Pickled weights as training scripts leave them, and towers in the files of something else.

The other half of test_files_of_others.py.
"""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import shutil

import checkpoints
from commands import command
import numpy as np
import pytest

from blip3o_jax import trees
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.weights import store

ASKED = ("--only", "backbone,generation")
HEAD = "lm_head.weight"
Values = checkpoints.Values


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
      "ema": checkpoints.shifted(v),
      "step": 3,
      "args": argparse.Namespace(lr=np.float64(1)),
    },
    (),
    "an average, 'ema' (",
    False,
  ),
  "its ema": (
    lambda v: {"model": v, "ema": checkpoints.shifted(v)},
    ("--weights", "ema"),
    "'ema' is taken, not 'mod",
    True,
  ),
  "state_dict and ema_state_dict": (
    lambda v: {"state_dict": v, "ema_state_dict": checkpoints.shifted(v), "epoch": 1},
    (),
    "an average, 'ema_state_dict' (",
    False,
  ),
  "an average in a table of its own": (
    lambda v: {"model": v, "ema": {"decay": 0.9, "shadow": checkpoints.shifted(v)}},
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
      "state_dict": checkpoints.under("model.", v)
      | checkpoints.under("model_ema.", checkpoints.shifted(v)),
      "callbacks": {"x": {"best": v[HEAD]}},
      "optimizer_states": {"0": optimizer(v)},
    },
    ("--weights", "model_ema"),
    "the average 'model_ema' is taken",
    True,
  ),
  "DeepSpeed's model states": (
    lambda v: {
      "module": checkpoints.under("module.", v),
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
def test_the_right_table_of_a_pickle(kind, bare, values, tmp_path, capsys):
  pytest.importorskip("torch")
  make, options, says, average = PICKLES[kind]
  pickled(bare, make(values))
  out = tmp_path / "out"
  done = command("convert")(
    "import", "--source", bare, "--output", out, *ASKED, "--allow-pickle", *options
  )
  assert done == 0
  assert says in capsys.readouterr().err
  wanted = checkpoints.shifted(values) if average else values
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
def test_a_pickle_whose_table_is_not_known(make, message, bare, values, tmp_path, capsys):
  pytest.importorskip("torch")
  pickled(bare, make(values))
  options = ("--source", bare, "--output", tmp_path / "out", "--allow-pickle", *ASKED)
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
def test_shards_of_pickles(bare, values, tmp_path):
  """A stale twin in one of them; with the index that says which counts, and without any index."""
  pytest.importorskip("torch")
  old, names = "model.norm.weight", sorted(values)
  halves = [{n: values[n] for n in names[i::2]} for i in (0, 1)]
  own = next(i for i, half in enumerate(halves) if old in half)
  files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
  for half, file in zip(halves, files, strict=True):
    pickled(bare, half, file)
  convert = command("convert")
  options = ("import", "--source", bare, *ASKED, "--allow-pickle", "--output")
  assert convert(*options, tmp_path / "unlisted") == 0
  pickled(bare, halves[1 - own] | {old: values[old] + 7}, files[1 - own])
  places = {n: file for half, file in zip(halves, files, strict=True) for n in half}
  (bare / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
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
  clip = checkpoints.under("visual.", found) | {n: np.float32([x]) for n, x in more.items()}
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
    tower = trees.flatten(verbs.load(source).system.params)["encoder/tower/cls_token"]
    np.testing.assert_array_equal(tower, found["cls_token"])
