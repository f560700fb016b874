"""The trained miniature that ships: whole, small, in half precision, drawing and answering.

A change that breaks what the shipped weights compute shows here. The bars are the card's figures
less what chance can take from so few prompts and questions.
"""

import os
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.evaluate import shapes as scorer
from blip3o_jax.miniature import report
from blip3o_jax.miniature import scores
from blip3o_jax.miniature import shipped
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.weights.safetensors import Tensors

ROOT = Path(__file__).parents[2]
PROMPTS, QUESTIONS, PICTURES = 3, 4, 8  # of each category, of each type, to reconstruct


@pytest.fixture(scope="module")
def model() -> verbs.Model:
  return verbs.load(shipped.directory())


def least(rate: float, count: int) -> int:
  """How many of `count` must be right: three standard deviations below the card's share."""
  return int(np.floor(count * rate - 3 * np.sqrt(count * rate * (1 - rate))))


def test_it_is_whole_and_small():
  sums = shipped.verify()
  card = shipped.card()
  assert {name: sums[name] for name in card["sha256"]} == card["sha256"]
  assert shipped.size(shipped.directory()) <= 16_000_000 <= shipped.BUDGET
  assert {"commands", "seed", "seconds", "scores", "parts", "versions"} <= set(card)
  for group in ("generation", "understanding"):
    assert {"low", "high"} < set(card["scores"][group]["overall"])


def test_it_is_in_half_precision():
  home = shipped.directory()
  folders = [home / diffusers_files.FOLDER / name for name in diffusers_files.FOLDERS.values()]
  for tensors in (Tensors(home), *(Tensors(folder, diffusers_files.STEM) for folder in folders)):
    assert len(tensors)
    assert {tensors.dtype(name) for name in tensors} == {np.dtype(np.float16)}


def test_it_draws_as_the_card_says(model):
  """The first prompts of each category, from the seeds that the card's pictures have."""
  card = shipped.card()["scores"]["generation"]
  counts = [card[report.NAMES.get(c, c)]["count"] for c in shapes.CATEGORIES]
  starts = np.cumsum([0, *counts[:-1]])
  asked = scores.test_prompts(PROMPTS)
  seeds = [int(start) + i for start in starts for i in range(PROMPTS)]
  images = scores.draw(model, [p["prompt"] for p in asked], seeds)
  right = scorer.score(images, asked)["overall"]["correct"]
  assert right >= least(card["overall"]["rate"], len(asked))


def test_it_answers_as_the_card_says(model):
  card = shipped.card()["scores"]["understanding"]["overall"]
  found, _ = scores.understanding(model, QUESTIONS)
  assert found["overall"]["correct"] >= least(card["rate"], int(found["overall"]["count"]))


def test_it_rebuilds_as_the_card_says(model):
  card = shipped.card()["scores"]["reconstruction"]
  found, _, _ = scores.reconstruction(model, PICTURES)
  assert found["psnr"] > card["psnr"] - 3
  assert found["right"]["correct"] >= least(card["scorer_accuracy"]["rate"], PICTURES)


def test_the_command_uses_it_and_says_so(tmp_path):
  image = tmp_path / "drawn.png"
  command = [sys.executable, "-m", "blip3o_jax.cli", "generate"]
  command += ["a red circle left of a blue square", "--output", str(image)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stderr.startswith("no --model: the miniature that ships with the package")
  assert np.asarray(Image.open(image)).shape == (64, 64, 3)
