"""tools/verify.py as a user runs it: passes on the recorded miniature, fails for altered values."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
from typing import Any

from commands import command
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax.systems.parts import recorded
from blip3o_jax.verify import recordings

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-blip3o"
SYSTEM, DECODER = TINY / "io.safetensors", TINY / "diffusion-decoder" / "io.safetensors"
TOWER, DIT = "model.gen_vision_tower.vision_tower.model.", "model.dit.model."
UNET, VAE = (
  f"diffusion-decoder/{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
)
Report = dict[str, Any]


@pytest.fixture(scope="module")
def verify() -> Callable[..., int]:
  """The tool's main; compiled programs are kept between its calls."""
  return command("verify")


@pytest.fixture
def report(verify, tmp_path) -> Callable[..., tuple[int, Report]]:
  """report(recording, model): the exit status and the JSON."""

  def run(recording: Path, model: Path = TINY, *options: str) -> tuple[int, Report]:
    file = tmp_path / "report" / "figures.json"
    status = verify("--model", model, "--recorded", recording, "--json", file, *options)
    return status, json.loads(file.read_text())

  return run


def part(file: Path, *calls: str) -> dict[str, np.ndarray]:
  """Some calls of a recording, or all: their inputs and outputs."""
  tensors = load_file(file)
  _, found = recordings.held(tensors, str(file))
  kept = {n for c in calls or found for n in (*found[c][0].inputs, *found[c][1])}
  return {name: tensors[name] for name in kept}


def alter(value: np.ndarray) -> np.ndarray:
  """One element changed: a whole number by one, another by a hundredth of the whole tensor's."""
  out = value.copy()
  where = tuple(int(i) for i in np.random.default_rng(value.size).integers(value.shape))
  whole = np.issubdtype(out.dtype, np.integer)
  out[where] += 1 if whole else 0.01 * np.sqrt(np.mean(np.square(out)))
  return out


def failed(figures: Report) -> set[str]:
  """The outputs that are not within tolerance."""
  return {name for name, row in figures["tensors"].items() if not row["ok"]}


def test_the_miniature_passes(verify, tmp_path, capsys, request):
  """Every output of both files; each is a row of the parity table."""
  file = tmp_path / "figures.json"
  status = verify("--model", TINY, "--recorded", SYSTEM, DECODER, "--json", file)
  shown = capsys.readouterr().out.splitlines()
  assert status == 0, shown
  assert shown[-1] == "37 outputs, all within tolerance"
  found = json.loads(file.read_text())
  assert found["ok"] is True
  held = {f: recordings.held(load_file(f), "")[1].values() for f in (SYSTEM, DECODER)}
  bars = {n: (f, c.bar(n)) for f, calls in held.items() for c, wanted in calls for n in wanted}
  assert set(found["tensors"]) == set(bars)
  for name, row in found["tensors"].items():
    kind, bar = bars[name]
    assert {"relative_error", "max_error", "shape", "ok"} <= set(row), name
    assert row["ok"] is True
    assert row["relative_error"] <= recorded.tolerance(name, bar, "float32")
    assert any(line.startswith(name) and line.endswith("ok") for line in shown)
    figures = (str(tuple(row["shape"])), row["relative_error"], bar.float32)
    label = "decoder." * (kind == DECODER) + name
    request.node.user_properties.append(("parity", (label, *figures)))


@pytest.mark.parametrize("file", [SYSTEM, DECODER], ids=["system", "decoder"])
@pytest.mark.parametrize("half", [0, 1])
def test_one_altered_value_of_any_output_fails(report, tmp_path, file, half):
  """Of every second output, and of the others: those that are left alone pass beside them."""
  values = part(file)
  _, calls = recordings.held(values, str(file))
  wrong = sorted(n for _, wanted in calls.values() for n in wanted)[half::2]
  save_file(values | {n: alter(values[n]) for n in wrong}, tmp_path / "wrong.safetensors")
  status, found = report(tmp_path / "wrong.safetensors")
  assert status == 1
  assert found["ok"] is False
  assert failed(found) == set(wrong)


def test_bfloat16_passes(report, tmp_path):
  save_file(part(SYSTEM, "eva", "dit", "und"), tmp_path / "some.safetensors")
  status, found = report(tmp_path / "some.safetensors", TINY, "--dtype", "bfloat16")
  errors = {name: row["relative_error"] for name, row in found["tensors"].items()}
  assert status == 0, errors
  assert errors["und.position_ids"] == 0
  assert errors["dit.velocity"] > 1e-4


@pytest.mark.parametrize(
  ("tensors", "right"),
  [
    (
      {
        f"{TOWER}blocks.1.attn.proj.weight": "eva.patch_features",
        f"{DIT}layers.0.feed_forward.linear_2.weight": "dit.velocity",
        "model.latent_queries": "gen0.query_hidden",
        "visual.blocks.0.mlp.up_proj.weight": "und.image_embeds",
      },
      {"und.position_ids", "und.rope_deltas"},
    ),
    ({"model.layers.1.mlp.down_proj.weight": "und.last_hidden"}, {"und.image_embeds"}),
    ({"lm_head.weight": "und.logits"}, {"und.image_embeds", "und.last_hidden"}),
    (
      {
        f"{UNET}:down_blocks.1.attentions.0.proj_in.weight": "unet.eps",
        f"{VAE}:encoder.conv_in.weight": "vae.mean",
        f"{VAE}:decoder.mid_block.attentions.0.to_q.weight": "vae.decoded",
      },
      set(),
    ),
  ],
  ids=["generator", "backbone", "head", "decoder"],
)
def test_one_altered_weight_fails(report, tmp_path, tensors, right):
  """In each network: what it computes fails, what comes before it does not."""
  model = Path(shutil.copytree(TINY, tmp_path / "model"))
  index = json.loads((TINY / "model.safetensors.index.json").read_text())["weight_map"]
  for word in tensors:
    file, _, name = word.rpartition(":")
    shard = model / (file or index[name])
    values = load_file(shard)
    values[name][(0,) * values[name].ndim] += 0.1
    save_file(values, shard, metadata={"format": "pt"})
  wrong = set(tensors.values())
  recording = DECODER if "unet.eps" in wrong else SYSTEM
  _, calls = recordings.held(load_file(recording), "")
  asked = [call for call, (_, wanted) in calls.items() if wrong & set(wanted)]
  save_file(part(recording, *asked), tmp_path / "part.safetensors")
  status, found = report(tmp_path / "part.safetensors", model)
  assert status == 1
  assert wrong <= failed(found)
  assert not failed(found) & right


@pytest.mark.parametrize(
  "names",
  [("eva.pixel_values", "und.input_ids", "dit.z"), ("unet.time_ids",)],
  ids=["system", "decoder"],
)
def test_one_altered_input_fails(report, tmp_path, names):
  """Each input is of a call of its own, which fails."""
  calls = [name.partition(".")[0] for name in names]
  values = part(DECODER if calls == ["unet"] else SYSTEM, *calls)
  for name in names:
    values[name][(0,) * values[name].ndim] += 1
  save_file(values, tmp_path / "part.safetensors")
  status, found = report(tmp_path / "part.safetensors")
  assert status == 1
  assert {name.partition(".")[0] for name in failed(found)} == set(calls)


def test_not_a_number_and_another_shape_fail(report, tmp_path):
  values = part(SYSTEM, "dit", "eva")
  values["dit.velocity"][1, 2, 0, 0] = np.nan
  values["eva.pooled"] = values["eva.pooled"][:, :-1].copy()
  save_file(values, tmp_path / "part.safetensors")
  status, found = report(tmp_path / "part.safetensors", TINY, "--tolerance", "1e9")
  assert status == 1
  assert found["tensors"]["dit.velocity"]["relative_error"] is None
  assert found["tensors"]["eva.pooled"]["ok"] is False
  assert found["tensors"]["eva.patch_features"]["ok"] is True


def test_a_tolerance_decides(report, tmp_path):
  save_file(part(SYSTEM, "dit"), tmp_path / "part.safetensors")
  assert report(tmp_path / "part.safetensors", TINY, "--tolerance", "1e-9")[0] == 1
  wide = ("--tolerance", "1e-9", "--tolerance", "dit.*=1e-4")
  assert report(tmp_path / "part.safetensors", TINY, *wide)[0] == 0


def changed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
  """A recording of the DiT and of a training step with tensors replaced or left out."""
  values = part(SYSTEM, "dit", "train")
  for name, value in changes.items():
    key = name.replace("__", ".")
    values.pop(key, None)
    if value is not None:
      values[key] = value
  return values


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"dit__x": None}, "dit.x is missing, the input of dit.velocity"),
    ({"dit__velosity": np.zeros(3)}, "dit.velosity is not a name of a recording; near: dit.velo"),
    ({"dit__z": np.full((2, 4, 64), np.nan)}, "the input dit.z holds NaN"),
    ({"dit__z": np.zeros((2, 4, 63), np.float32)}, "dit does not fit the model"),
    ({"train__grad__dit__model__gate": np.zeros(3)}, "the model has no parameter model.dit.model"),
    ({"train__grad__norm__weight": np.zeros(64)}, "only slots, projector, denoiser are trained"),
    ({"train__query_start": np.array([13, 9])}, "train.query_start[0] is 13: expected a prompt, 4"),
    ({"train__attention_mask": np.ones((2, 18), np.int64)}, "train.query_start[1] is 9: expected"),
  ],
  ids=["missing", "unknown", "nan", "width", "gradient", "frozen", "start", "mask"],
)
def test_recordings_that_do_not_fit(verify, tmp_path, capsys, changes, message):
  file = tmp_path / "part.safetensors"
  save_file(changed(**changes), file)
  assert verify("--model", TINY, "--recorded", file) == 1
  shown = capsys.readouterr().err
  assert shown.startswith(f"blip3o verify: {file}: ")
  assert message in shown


def test_files_that_are_wrong(verify, tmp_path, capsys):
  cut = tmp_path / "cut.safetensors"
  cut.write_bytes(SYSTEM.read_bytes()[:-1000])
  for arguments, message in (
    (("--model", TINY, "--recorded", tmp_path / "absent"), "absent: no such file"),
    (("--model", TINY, "--recorded", cut), "cut.safetensors: truncated"),
    (("--model", "/absent", "--recorded", SYSTEM), "/absent: no such directory"),
    (("--model", tmp_path, "--recorded", SYSTEM), "no config.json"),
    (("--model", tmp_path, "--recorded", DECODER), "no files of a model that is known"),
    (("--model", TINY, "--recorded", SYSTEM, "--tolerance", "x"), "expected a number"),
  ):
    assert verify(*arguments) == 1
    assert message in capsys.readouterr().err
