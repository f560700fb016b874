"""A system that the package does not know goes through its commands like those that it knows."""

from collections.abc import Callable
from collections.abc import Iterator
import json
from pathlib import Path
import re
from typing import Any

import checkpoints
from commands import command
from flax import nnx
import jax
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file
import third_system

from blip3o_jax import cli
from blip3o_jax import systems
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.train import checkpoint

ROOT = Path(__file__).parents[2]
STEPS, MORE, VOCABULARY = 30, 34, 300
PROMPTS = ("a large red circle", "two small blue squares")
CONFIG = """
from blip3o_jax.data.pipeline import Data
from blip3o_jax.models.decoder_lm import Config
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config


def get_config(arg):
  model = Config({vocabulary}, dim=32, depth=2, heads=2, kv_heads=1, head_dim=16, mlp_dim=64,
                 mrope_section=(2, 3, 3), tie_embeddings=True, init_std=0.1)
  data = Data(source="shapes", split="generator", records=64, task="sew", buckets=(64,),
              image_size=4, cache=True)
  train = Train(steps={steps}, batch=8, optimizer=Optimizer(lr=1e-2, schedule="constant"),
                checkpoint=Checkpoint(every_steps=0),
                log=Log(every=5, samples_every=50, tensorboard=False))
  out = to_config("quilt", model, train, data)
  out.tokenizer, out.samples.prompts = {tokenizer!r}, {prompts!r}
  return out
"""


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
  """The third system among SYSTEMS, in this process alone."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(systems.SYSTEMS, "quilt", third_system.System())
    yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
  """A folder with the tokenizer and the config file of a run from nothing."""
  folder = tmp_path_factory.mktemp("quilt")
  source = open_source(Data(source="shapes", split="generator", records=64))
  texts = [source[i].prompt for i in range(64)]
  special = third_system.System.SPECIAL
  train_bpe(texts, VOCABULARY, folder / "words", special)
  text = CONFIG.format(
    vocabulary=VOCABULARY, steps=STEPS, tokenizer=str(folder / "words"), prompts=PROMPTS
  )
  (folder / "config.py").write_text(text)
  return folder


def train(home: Path, workdir: Path, *fields: str) -> list[dict[str, Any]]:
  """The lines of metrics after `blip3o train`."""
  assert cli.main(["train", f"--config={home}/config.py", f"--workdir={workdir}", *fields]) == 0
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(home) -> Path:
  """A run of a few steps, ended and gone on with."""
  losses = [line["loss"] for line in train(home, home / "run")]
  assert losses[-1] < 0.6 * losses[0], losses
  lines = train(home, home / "run", f"--config.steps={MORE}")
  assert [line["step"] for line in lines] == [*range(5, STEPS + 1, 5), MORE]
  assert lines[-1]["loss"] < 0.6 * losses[0], "it began anew"
  assert checkpoint.steps(home / "run") == [STEPS, MORE]
  return home / "run"


@pytest.fixture(scope="module")
def released(run, home) -> Path:
  """The run in the system's own layout."""
  words = ("--tokenizer", home / "words")
  assert command("convert")("export", "--source", run, "--output", home / "out", *words) == 0
  return home / "out"


@pytest.fixture(scope="module")
def converted(released, home) -> Path:
  assert command("convert")("import", "--source", released, "--output", home / "orbax") == 0
  return home / "orbax"


@pytest.fixture
def said(capsys) -> Callable[[], str]:
  """What the last command printed."""

  def read() -> str:
    found = capsys.readouterr()
    return found.out + found.err

  return read


def test_pictures_are_drawn_while_it_trains(run):
  for step in (STEPS, MORE):
    with Image.open(run / "samples" / f"step_{step:08d}.png") as picture:
      assert picture.size[0] > 2 * third_system.SIDE, "two pictures side by side"


def test_out_in_and_out_again(run, released, converted, home):
  """Files of the system's own names hold what was trained, bit for bit, on all ways."""
  again = home / "again"
  assert command("convert")("export", "--source", converted, "--output", again) == 0
  checkpoints.same_tensors(released, again, "quilt")
  names = {p.name for p in released.iterdir()}
  words = {"tokenizer.json", "tokenizer_config.json"}
  assert names == {"config.json", "quilt.safetensors", "licences.txt", *words}
  tensors = load_file(released / "quilt.safetensors")
  assert {n.partition(".")[0] for n in tensors} == {"reader", "needles", "dye"}
  trained = checkpoint.stored(run)
  assert sum(v.size for v in tensors.values()) == sum(np.prod(v.shape) for v in trained.values())
  lines = (again / "licences.txt").read_text().splitlines()
  assert sorted(lines) == ["cloth: Needle-1.0", "reader: Needle-1.0"]


def test_a_run_from_nothing_needs_words_to_be_released(run, said, tmp_path):
  assert command("convert")("export", "--source", run, "--output", tmp_path / "out") == 1
  assert f"{run}: a quilt that started from nothing has no tokenizer; give --tokenizer" in said()
  assert not (tmp_path / "out").exists()


def test_what_is_released_is_trained_further(released, home):
  """The language model stays as the directory had it, the rest starts from it."""
  before, tuned, out = load_file(released / "quilt.safetensors"), home / "tuned", home / "tuned-out"
  fields = (f"--config.init_from=('{released}',)", "--config.trainable=('slots/.*', 'dye/.*')")
  train(home, tuned, *fields, "--config.steps=1", "--config.log.samples_every=0")
  assert command("convert")("export", "--source", tuned, "--output", out) == 0
  after = load_file(out / "quilt.safetensors")
  changed = {n for n in before if not np.array_equal(before[n], after[n])}
  assert changed == {n for n in before if not n.startswith("reader.")}
  assert np.max(np.abs(after["dye.weight"] - before["dye.weight"])) < 0.02


def test_one_picture_from_all_directories(run, released, converted, said, home):
  made = []
  for source in (run, released, converted):
    output = home / f"{source.name}.png"
    assert cli.main(["generate", *PROMPTS, f"--model={source}", f"--output={output}"]) == 0
    made.append(np.asarray(Image.open(output)))
  np.testing.assert_array_equal(made, [made[0]] * 3)
  models = [third_system.System().load(d, dtype="float32") for d in (run, released, converted)]
  for model in models[1:]:
    jax.tree.map(np.testing.assert_array_equal, *map(nnx.state, (models[0].quilt, model.quilt)))
  one, two = models[0].generate(PROMPTS, [0, 1])
  assert not np.array_equal(one, two), "it does not read the prompt"
  np.testing.assert_array_equal(models[0].generate(PROMPTS[:1], [7])[0], one)
  said()
  assert cli.main(["generate", PROMPTS[0], f"--model={run}", "--steps=5"]) == 1
  assert "this model cannot generate with the option steps; it takes none" in said()
  assert cli.main(["chat", "how many?", f"--model={run}"]) == 1
  assert "a model of the system quilt cannot chat; it can generate" in said()


def test_its_step_is_planned(home, said, tmp_path):
  file = tmp_path / "plan.json"
  arguments = (f"--config={home}/config.py", "--topology=here", "--config.batch=16")
  assert command("plan")(*arguments, f"--json={file}") == 0
  text, facts = said(), json.loads(file.read_text())
  assert (facts["batch"], facts["prompt_bucket"]) == (16, 64)
  assert facts["flops_per_sample_analytic"] > 0
  assert re.search(r"^dye +trained +2 ", text, re.MULTILINE)


def test_each_directory_is_described(run, released, converted, said):
  kinds = {run: "run of quilt, blip3o_jax", released: "released layout", converted: "converted"}
  counts = []
  for source, kind in kinds.items():
    assert command("inspect_checkpoint")(source, "--json") == 0
    found = json.loads(said())
    assert found["system"] == "quilt"
    assert found["kind"].startswith(kind)
    counts.append({name: c["parameters"] for name, c in found["components"].items()})
  assert counts[0] == counts[1] == counts[2]
  assert set(counts[0]) == {"reader", "cloth"}


def test_whose_a_directory_is(run, released, converted, monkeypatch, said, tmp_path):
  assert [systems.of(source) for source in (run, released, converted)] == ["quilt"] * 3
  assert systems.of(checkpoints.TINY) == "blip3o"

  class Claimant(third_system.System):
    LOOKS_FOR = "anything at all"

    def recognises(self, files):
      return True

  monkeypatch.setitem(systems.SYSTEMS, "greedy", Claimant())
  assert command("convert")("import", "--source", released, "--output", tmp_path / "x") == 1
  text = said()
  assert f"{released}: quilt and greedy both take it for theirs; each looks for" in text
  for name, system in systems.SYSTEMS.items():
    assert f"{name}: {system.LOOKS_FOR}" in text
  assert not (tmp_path / "x").exists()


def test_recordings(released, said, tmp_path):
  """One of its own is replayed, one of another model fails, one of unknown names is nobody's."""
  model = systems.SYSTEMS["quilt"].load(released, dtype="float32")
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  given = {"sew.tokens": tokens, "sew.segments": np.ones_like(tokens)}
  made = np.moveaxis(np.asarray(model.quilt.colours(*given.values())), -1, 1).copy()
  verify, file = command("verify"), tmp_path / "recorded.safetensors"
  for sewn, status in ((made, 0), (made + 0.1, 1)):
    save_file(given | {"sewn": sewn}, file)
    assert verify("--model", released, "--recorded", file) == status
  said()
  save_file({"knitted": made}, file)
  assert verify("--model", released, "--recorded", file) == 1
  known = ", ".join(systems.SYSTEMS)
  assert f"{file}: of none of {known}: 1 fault(s)\n  knitted is not a name of a" in said()


def test_nobody_names_it():
  """No file of the package or of its commands knows this system."""
  trees = ("blip3o_jax", "tools", "configs", "launch")
  files = [p for tree in trees for p in (ROOT / tree).rglob("*") if p.suffix in (".py", ".sh")]
  assert len(files) > 100
  named = [p for p in files if re.search("third_system|quilt", p.read_text(), re.IGNORECASE)]
  assert not named, named
  lines = (ROOT / "tests" / "third_system.py").read_text().splitlines()
  assert len(lines) <= 160
