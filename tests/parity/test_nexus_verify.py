"""tools/verify.py on a second system: every recorded call, altered values, altered weights.

Each call is replayed once as it was recorded and once with all of its outputs altered; what is
compiled for the one serves the other.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import json
from pathlib import Path
import shutil
from typing import Any

from commands import command
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax.systems.nexus_gen import recordings as calls_of
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.parts import recorded
from blip3o_jax.verify import recordings

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "tiny-nexus-gen"
GOLDEN = TINY / "io.safetensors"
# Calls that share programs; those that compile long ones are slow.
GROUPS = {
  "host": ("sampler", "ids_512", "pre"),
  "answers": ("gen", "edit", "und", "gen_penalty", "forced", "single"),
  "vectors": ("reference", "adapter", "merger"),
}
SLOW = {
  "transformer": ("dit_edit",),
  "autoencoder": ("vae",),
  "training": ("train", "v1"),
  "painting": ("dit_gen", "loop_gen"),
  **{name: (name,) for name in calls_of.LOOPS if name != "loop_gen"},
  "loss_generation": ("fm_gen",),
  "loss_editing": ("fm_edit",),
}
Report = dict[str, Any]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
  """The recording with the photo that its pictures were made of, which its file lacks."""
  photo = Image.open(DATA / "preprocess" / "photo_420.jpg").convert("RGB")
  return {**load_file(GOLDEN), calls_of.PHOTO: np.asarray(photo)}


@pytest.fixture(scope="module")
def verify() -> Iterator[Callable[..., int]]:
  """The tool's main; a directory is loaded once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(verbs, "load", functools.cache(verbs.load))
    yield command("verify")


@pytest.fixture
def report(verify, tmp_path) -> Callable[..., tuple[int, Report]]:
  """report(values, model): the exit status of the tool for a recording, and the JSON."""

  def run(values: dict[str, np.ndarray], model: Path = TINY) -> tuple[int, Report]:
    file, figures = tmp_path / "io.safetensors", tmp_path / "figures.json"
    save_file(values, file)
    status = verify("--model", model, "--recorded", file, "--json", figures)
    return status, json.loads(figures.read_text())

  return run


def part(values: dict[str, np.ndarray], *names: str) -> tuple[dict[str, np.ndarray], set[str]]:
  """Some calls of a recording, and the names of their outputs."""
  _, held = recordings.held(values, "")
  found = [held[name] for name in names]
  outputs = {n for _, wanted in found for n in wanted}
  kept = outputs | {n for call, _ in found for n in call.inputs}
  # An output of one call may be the input of another, and is then compared only with its own.
  return {n: np.array(values[n], order="C") for n in kept}, outputs


def alter(value: np.ndarray) -> np.ndarray:
  """One element changed: a whole number by one, another by a hundredth of the whole tensor's."""
  out = value.copy()
  where = tuple(int(i) for i in np.random.default_rng(value.size).integers(value.shape))
  whole = np.issubdtype(out.dtype, np.integer)
  out[where] += 1 if whole else 0.01 * np.sqrt(np.mean(np.square(out))) or 0.01
  return out


def failed(figures: Report) -> set[str]:
  return {name for name, row in figures["tensors"].items() if not row["ok"]}


def test_every_recorded_name_is_known(golden):
  for values, count in ((load_file(GOLDEN), 173), (golden, 179)):
    who, held = recordings.check(values, "golden")
    assert who == "nexus_gen"
    outputs = {n for _, wanted in held.values() for n in wanted}
    inputs = {n for call, _ in held.values() for n in call.inputs}
    assert inputs | outputs == set(values)
    assert len(outputs) == count
  assert set(held) == {name for group in (GROUPS | SLOW).values() for name in group}


@pytest.mark.parametrize(
  "group", [*GROUPS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_calls(golden, report, group, request):
  """As recorded all is within its bar; each altered output is found."""
  values, outputs = part(golden, *(GROUPS | SLOW)[group])
  status, found = report(values)
  assert not failed(found), {n: found["tensors"][n] for n in failed(found)}
  assert status == 0
  assert outputs <= set(found["tensors"])
  _, held = recordings.held(values, "")
  bars = {n: call.bar(n) for call, wanted in held.values() for n in wanted}
  for name, row in found["tensors"].items():
    assert recorded.SLACK * bars[name].float32 <= 1e-5
    figures = (str(tuple(row["shape"])), row["relative_error"], bars[name].float32)
    request.node.user_properties.append(("parity", (name, *figures)))
  status, found = report(values | {n: alter(values[n]) for n in outputs})
  assert status == 1
  assert outputs <= failed(found)


def test_an_answer_that_was_not_recorded_is_given(golden):
  """Where the model started no picture by itself its vectors are inputs of the decoders."""
  values, _ = part(golden, "adapter")
  _, held = recordings.held(values, "")
  assert set(held) == {"adapter"}
  assert "gen" in recordings.held(golden, "")[1]


def test_what_does_not_fit(golden, verify, tmp_path, capsys):
  values, _ = part(golden, "forced")
  file = tmp_path / "io.safetensors"
  for change, message in (
    ({"forced.input_ids": values["forced.input_ids"][:, :-1]}, "forced.input_ids ends in"),
    ({"forced.image_vectorz": np.zeros(2)}, "forced.image_vectorz is not a name of a recording"),
  ):
    save_file({**values, **change}, file)
    assert verify("--model", TINY, "--recorded", file) == 1
    assert message in capsys.readouterr().err


# A weight of each network: its file, the call that shows it, what then fails and what does not.
WEIGHTS = [
  ("", "visual.blocks.0.mlp.up_proj.weight", "reference", "merger.reference_embeds", ""),
  ("", "model.layers.1.mlp.down_proj.weight", "und", "und.last_hidden", "und.image_embeds"),
  ("", "lm_head.weight", "und", "und.logits", "und.last_hidden"),
  ("", "vision_head.weight", "single", "single.predicted_vectors", "single.source_embeds"),
  ("", "image_prefill_embeds.weight", "single", "single.predicted_vectors", "single.source_embeds"),
  ("generation_decoder", "adapter.3.weight", "adapter", "adapter.output", ""),
  ("generation_decoder", "pipe.dit.single_blocks.1.proj_out.weight", "dit_gen", "dit_gen.velocity",
   "dit_gen.conditioning"),
  ("edit_decoder", "embedding_merger.projector.1.weight", "merger", "merger.output",
   "merger.position_ids"),
  ("edit_decoder", "pipe.dit.blocks.1.ff_b.0.weight", "dit_edit", "dit_edit.velocity",
   "dit_edit.conditioning"),
  ("ae", "encoder.mid.attn_1.q.weight", "vae", "vae.latent", "vae.decoded"),
  ("ae", "decoder.up.3.block.0.conv1.weight", "vae", "vae.decoded", "vae.latent"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part_of", range(4))
def test_one_altered_weight_fails(golden, report, tmp_path, part_of):
  """In each network: what it computes fails, what comes before it does not."""
  for file, name, call, wrong, right in WEIGHTS[part_of::4]:
    model = Path(shutil.copytree(TINY, tmp_path / name.replace(".", "-")))
    index = json.loads((TINY / "model.safetensors.index.json").read_text())["weight_map"]
    shard = model / (f"{file}.safetensors" if file else index[name])
    tensors = load_file(shard)
    tensors[name][(0,) * tensors[name].ndim] += 0.2
    save_file(tensors, shard, metadata={"format": "pt"})
    values, _ = part(golden, call)
    status, found = report(values, model)
    assert (status, wrong in failed(found)) == (1, True), name
    assert not {right} & failed(found), name


def test_the_pickle_beside_is_not_read(report, golden, tmp_path):
  """Of a decoder that lies there twice the safetensors count."""
  model = Path(shutil.copytree(TINY, tmp_path / "model"))
  for file in model.glob("*.bin"):
    file.write_bytes(b"no pickle")
  values, _ = part(golden, "adapter")
  assert report(values, model)[0] == 0


# The oracle --------------------------------------------------------------------------------------


@pytest.fixture
def record() -> Iterator[Callable[..., int]]:
  """The tool's main, in one thread: the networks are too small to share out."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield command("record")
  torch.set_num_threads(threads)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.usefixtures("one_table")
def test_torch_of_today_records_the_same(golden, record, tmp_path, check):
  """Transformers and diffusers of today, given the recorded inputs."""
  given, output = tmp_path / "given.safetensors", tmp_path / "again.safetensors"
  save_file({n: np.array(v, order="C") for n, v in golden.items()}, given)
  assert record("--model", TINY, "--output", output, "--inputs", given) == 0
  again = recordings.read(output)
  assert set(again) == set(golden)
  for call, outputs in recordings.held(golden, "")[1].values():
    for name in outputs:
      assert again[name].dtype == golden[name].dtype, name
      if golden[name].dtype == np.uint8 and name.startswith("loop_"):
        # A value that is cut lies near a whole number here and there.
        assert np.abs(again[name].astype(int) - golden[name]).max() <= 1
        assert np.mean(again[name] != golden[name]) < 1e-3
      else:
        check(f"torch of today: {name}", again[name], call.bar(name).float32, golden[name])


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.usefixtures("one_table")
def test_a_fresh_recording(record, tmp_path, report):
  """Other inputs, recorded by PyTorch: what needs no long program is replayed."""
  output = tmp_path / "fresh.safetensors"
  assert record("--model", TINY, "--output", output, "--seed", 5) == 0
  values = recordings.read(output)
  _, held = recordings.check(values, "fresh")
  assert {"train", "v1", "fm_edit", "pre", *calls_of.LOOPS} <= set(held)
  short = (*GROUPS["host"], *GROUPS["vectors"], "single", "und")
  status, found = report(part(values, *short)[0])
  assert (status, failed(found)) == (0, set())
