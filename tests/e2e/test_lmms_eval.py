"""lmms-eval itself asks the shipped miniature: questions, and drawings whose paths it gets."""

import json
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import blip3o_jax
from blip3o_jax.evaluate import lmms

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.slow

QUESTIONS = ("how many stars are there?", "how many circles are there?")
PROMPTS = ("a red circle", "a blue square")

TASK = """
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{{{{text}}}}"
doc_to_target: "text"
process_results: !function utils.results
generation_kwargs: {options}
metric_list:
  - metric: kept
    aggregation: !function utils.collected
    higher_is_better: true
"""
UTILS = """
import json
from PIL import Image

def visual(doc):
  return [Image.open(doc["image"]).convert("RGB")] if doc["image"] else []

def results(doc, results):
  said = results[0]
  if said.startswith("{"):
    Image.open(json.loads(said)["images"][0]).load()
  return {"kept": said}

def collected(values):
  return len(values)
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
  """ask(name, rows, options, **arguments of the model): what lmms-eval was answered."""
  from lmms_eval import evaluator
  from lmms_eval import models
  from lmms_eval.tasks import TaskManager

  monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)  # it asks for the name `json`
  # Beside a checkout whose metadata may be older than its files.
  models.MODEL_REGISTRY_V2.register_manifest(lmms.manifest(), overwrite=True)

  def run(name: str, rows: list[dict[str, str]], options: dict, **more: object) -> list[str]:
    home = tmp_path / name
    home.mkdir()
    (home / "data.json").write_text("\n".join(map(json.dumps, rows)))
    (home / "utils.py").write_text(UTILS)
    text = TASK.format(name=name, data=home / "data.json", options=json.dumps(options))
    (home / f"{name}.yaml").write_text(text)
    found = evaluator.simple_evaluate(
      model="blip3o",
      model_args=",".join(f"{k}={v}" for k, v in more.items()),
      tasks=[name],
      batch_size=2,
      task_manager=TaskManager("ERROR", include_path=str(home), model_name="blip3o"),
      bootstrap_iters=0,
    )
    samples = sorted(found["samples"][name], key=lambda each: each["doc_id"])
    assert found["results"][name]["kept,none"] == len(rows)
    return [each["filtered_resps"][0] for each in samples]

  return run


def test_the_entry_point_is_found(tmp_path):
  code = "from lmms_eval.models import get_model; print(get_model('blip3o').__module__)"
  # Elsewhere, so that what is installed counts.
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
  )
  said = "is the package installed again since it has the entry point? " + done.stderr[-300:]
  assert done.stdout.strip().endswith("blip3o_jax.evaluate.lmms_model"), said


def test_questions_are_answered_as_by_chat(ask, tmp_path):
  model = blip3o_jax.load()
  shown = model.generate("a red circle left of a blue square", 3)[0]
  path = shown.save(tmp_path / "shown.png")
  rows = [{"image": str(path), "text": question} for question in QUESTIONS]
  options = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "num_beams": 1}
  found = ask("questions", rows, options)
  for question, said in zip(QUESTIONS, found, strict=True):
    content = [{"type": "image", "image": shown.image}, {"type": "text", "text": question}]
    wanted = model.chat([{"role": "user", "content": content}], length=16, temperature=0.0)
    assert said == wanted.text
  assert any(found)


def test_drawings_are_the_model_s_and_their_paths_are_told(ask, tmp_path):
  rows = [{"image": "", "text": prompt} for prompt in PROMPTS]
  output = tmp_path / "drawn"
  options = {"max_new_tokens": 64, "temperature": 0}
  found = ask("drawings", rows, options, mode="generate", output_dir=output, seed=11, steps=4)
  wanted = blip3o_jax.load().generate(PROMPTS, 11, steps=4)
  for i, said in enumerate(found):
    (path,) = json.loads(said)["images"]
    assert Path(path) == output / "drawings" / "test" / f"{i}.png"
    assert np.array_equal(np.asarray(Image.open(path)), wanted[i].pixels)
