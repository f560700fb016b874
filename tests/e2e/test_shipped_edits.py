"""The trained Nexus-Gen that ships: whole, small, in half precision; it edits as its card says."""

import os
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import test_shipped

import blip3o_jax
from blip3o_jax.data import shapes
from blip3o_jax.miniature import scores
from blip3o_jax.miniature import shipped
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.weights.safetensors import Tensors

ROOT = Path(__file__).parents[2]
SYSTEM = "nexus_gen"
EDITS, QUESTIONS = 4, 3  # of each kind


@pytest.fixture(scope="module")
def model() -> verbs.Model:
  return verbs.load(shipped.directory(SYSTEM))


def test_it_is_whole_small_and_in_half_precision():
  home, card = shipped.directory(SYSTEM), shipped.card(SYSTEM)
  sums = shipped.verify(home)
  assert {name: sums[name] for name in card["sha256"]} == card["sha256"]
  assert shipped.size(home) <= shipped.BUDGET
  assert card["system"] == SYSTEM
  for stem in ("model", "generation_decoder", "edit_decoder"):
    tensors = Tensors(home, stem)
    assert {tensors.dtype(name) for name in tensors} == {np.dtype(np.float16)}


def test_it_edits_as_the_card_says(model):
  card = shipped.card(SYSTEM)["scores"]
  edits = scores.edits_of(EDITS)
  found, _ = scores.editing(model, edits)
  assert found["overall"]["correct"] >= test_shipped.least(
    card["editing"]["overall"]["rate"], len(edits)
  )
  # What is given back as it was counts as no edit, so that copying is not what the card measures.
  assert card["editing_bounds"]["input"]["correct"] == 0


def test_it_answers_as_the_card_says(model):
  card = shipped.card(SYSTEM)["scores"]["understanding"]["overall"]
  found, _ = scores.understanding(model, QUESTIONS)
  count = int(found["overall"]["count"])
  assert found["overall"]["correct"] >= test_shipped.least(card["rate"], count)


def test_it_is_what_edits_where_no_model_is_named(tmp_path):
  edit = scores.edits_of(1)[0]
  Image.fromarray(shapes.render_many([edit.before])[0]).save(tmp_path / "before.png")
  command = [sys.executable, "-m", "blip3o_jax.cli", "edit", "before.png", edit.instruction]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
  assert done.returncode == 0, done.stderr[-3000:]
  said = f"no --model: the miniature that ships with the package ({shipped.name(SYSTEM)})"
  assert done.stderr.startswith(said)
  with Image.open(tmp_path / "edited.png") as picture:
    assert np.asarray(picture).shape == (64, 64, 3)


def test_its_name():
  named = blip3o_jax.load(f"miniature:{SYSTEM}")
  assert (named.name, named.system) == (shipped.name(SYSTEM), SYSTEM)
  assert blip3o_jax.load(verb="edit").name == named.name
  with pytest.raises(ValueError, match=r"miniature:third: expected .* one of blip3o, nexus_gen"):
    blip3o_jax.load("miniature:third")
  before = shapes.render_many([scores.edits_of(1)[0].before])[0]
  with pytest.raises(ValueError, match=r"cannot edit; .*; miniature:nexus_gen can edit"):
    blip3o_jax.load().edit(before, "make it red")
