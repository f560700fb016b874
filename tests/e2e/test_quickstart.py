"""The quickstart with a few steps, on shipped parts and from scratch: what it leaves, reuse."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import resource
import signal
import subprocess
import sys
import time

import pytest

from blip3o_jax.miniature import parts
from blip3o_jax.miniature import shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
  """Of every process here; what one compiles, the next ones read."""
  programs = tmp_path_factory.mktemp("programs")
  cache = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(programs)}
  cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
  return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | cache


@pytest.fixture(scope="module")
def call(environment) -> Callable[..., subprocess.CompletedProcess[str]]:
  """call(*command): a Python process that has ended."""

  def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)

  return run


@pytest.fixture(scope="module")
def said(call) -> Callable[..., str]:
  """said(*command): what a process that ended well printed."""

  def run(*command: object) -> str:
    done = call(*command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout

  return run


CPU_SECONDS = 480  # of a rehearsal: four minutes of two cores, with nothing compiled before


def _seconds() -> float:
  """Of all cores, that finished processes of this one took."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


ALL_PARTS = ("tokenizer", "tower", "encode", "autoencoder", "unet", "answers", "backbone")
LAST = ("generator", "probe", "pretrained", "tuned", "export", "score", "report")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
  ("options", "stages"),
  [
    pytest.param((), ("shipped", "features", *LAST, "compare"), marks=pytest.mark.slow),
    pytest.param(("--from-scratch",), (*ALL_PARTS, *LAST), marks=pytest.mark.long),
  ],
  ids=["shipped", "trained"],
)
def test_rehearsal(said, tmp_path, options, stages):
  work = tmp_path / "work"
  command = ("launch/quickstart.py", "--debug", *options, "--workdir", work)
  began = _seconds()
  first = said(*command)
  assert _seconds() - began < CPU_SECONDS
  for stage in stages:
    assert f"{stage} done in" in first
  numbers = json.loads((work / "report.json").read_text())
  assert {"understanding", "generation", "reconstruction"} <= set(numbers)
  assert set(numbers["seconds"]) == {*stages, "total"}
  assert min(numbers["seconds"].values()) >= 0
  assert numbers["model"] == shipped.sums(work / "model")
  understood, drawn = numbers["understanding"], numbers["generation"]
  assert {"accuracy", "accuracy_after_generation_training", "count", "where"} <= set(understood)
  assert understood["frozen_sha256_before"] == understood["frozen_sha256_after"]
  assert {"overall", "single_object", "two_objects", "counting", "colors", "position"} <= set(drawn)
  assert {"color_attribution", "unseen_combinations", "diversity_of_data"} <= set(drawn)
  assert {"count", "low", "high", "rate"} <= set(drawn["single_object"])
  assert 0 <= drawn["pretrained"]["overall"]["rate"] <= 1
  assert {"psnr", "scorer_accuracy"} == set(numbers["reconstruction"])
  assert {"accuracy", "rejection"} == set(numbers["scorer"])
  assert len(list((work / "images").rglob("*.png"))) == drawn["overall"]["count"]
  assert ("shipped" in numbers) == (not options)
  if not options:
    assert set(numbers["shipped"]["generation"]) == set(drawn)
    assert numbers["shipped"]["generation"]["overall"]["count"] == drawn["overall"]["count"]
    assert "the shipped generator: generation" in first
  assert (work / "drawings.png").stat().st_size > 0
  page = (work / "report.html").read_text()
  assert "http" not in page
  assert ("shipped right" in page) == (not options)
  if options:  # what follows knows no more of where the parts come from
    check_curve(said, command, work, [2, 2])
    return
  model, image = str(work / "model"), str(tmp_path / "drawn.png")
  drawn = said(
    "-m", "blip3o_jax.cli", "generate", "a red circle", "--model", model, "--output", image
  )
  assert drawn.strip() == image
  rebuilt = str(tmp_path / "rebuilt.png")
  said("-m", "blip3o_jax.cli", "reconstruct", image, "--model", model, "--output", rebuilt)
  assert Path(rebuilt).stat().st_size > 0
  said("-m", "blip3o_jax.cli", "chat", "what?", "--image", image, "--model", model, "--length", "4")

  stamps = {p.name: p.stat().st_mtime_ns for p in (work / "done").iterdir()}
  second = said(*command)
  assert second.count("was finished before") == len(stamps)
  assert {p.name: p.stat().st_mtime_ns for p in (work / "done").iterdir()} == stamps
  calls = [float(x) for x in (work / "calls" / "total.txt").read_text().split()]
  total = json.loads((work / "report.json").read_text())["seconds"]["total"]
  assert len(calls) == 2
  assert total == pytest.approx(sum(calls)) != calls[-1]
  check_curve(said, command, work, [0, 2])


NEXUS = ("told", "generation", "editing", "export", "score", "report")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
  ("options", "stages"),
  [((), ("start", *NEXUS)), (("--from-scratch",), ("start", "language", *NEXUS))],
  ids=["shipped", "trained"],
)
def test_rehearsal_of_the_other_system(said, tmp_path, options, stages):
  work = tmp_path / "work"
  command = ("launch/quickstart.py", "--system", "nexus_gen", "--debug", *options)
  command += ("--workdir", work)
  began = _seconds()
  first = said(*command)
  assert _seconds() - began < CPU_SECONDS
  for stage in stages:
    assert f"{stage} done in" in first
  numbers = json.loads((work / "report.json").read_text())
  assert set(numbers["seconds"]) == {*stages, "total"}
  assert numbers["model"] == shipped.sums(work / "model")
  named = (work / "model" / "licences.txt").read_text().splitlines()
  assert named
  assert all(line.endswith("apache-2.0 (its card)") for line in named)
  edited = numbers["editing"]
  assert {"recolour", "replace", "remove", "add", "move", "overall"} <= set(edited)
  assert {"count", "low", "high", "rate"} <= set(edited["move"])
  bounds = numbers["editing_bounds"]
  assert (bounds["input"]["rate"], bounds["target"]["rate"]) == (0, 1)
  assert {"overall", "single_object", "unseen_combinations"} <= set(numbers["generation"])
  assert {"overall", "count", "where"} <= set(numbers["understanding"])
  assert (work / "edits.png").stat().st_size > 0
  assert (work / "drawings.png").stat().st_size > 0
  assert "http" not in (work / "report.html").read_text()
  assert "editing " in first
  drawn, changed = str(tmp_path / "drawn.png"), str(tmp_path / "changed.png")
  use = ("-m", "blip3o_jax.cli")
  model = ("--model", work / "model")
  said(*use, "generate", "a red circle", *model, "--output", drawn)
  said(*use, "edit", drawn, "make the circle blue", *model, "--output", changed)
  assert Path(changed).stat().st_size > 0
  second = said(*command)
  assert second.count("was finished before") == len(stages)
  said(*command, "--stage", "curve")
  found = json.loads((work / "curve.json").read_text())
  kinds = ("understanding", "generation", "editing") if options else ("generation", "editing")
  assert {kind for kind, points in found.items() if points} == set(kinds)


def check_curve(said, command, work, points):
  said(*command, "--stage", "curve")
  found = json.loads((work / "curve.json").read_text())
  assert [len(found[kind]) for kind in ("understanding", "generation")] == points
  assert found["generation"][0][0] <= found["generation"][1][0]


def test_a_folder_of_the_other_choice_is_refused(call, tmp_path):
  parts.choose(tmp_path, "trained")
  done = call("launch/quickstart.py", "--debug", "--workdir", tmp_path)
  assert done.returncode == 1
  assert "its frozen parts are trained; call with --from-scratch to go on there" in done.stderr


def test_an_unknown_stage_is_named_and_leaves_nothing(call, tmp_path):
  done = call("launch/quickstart.py", "--workdir", tmp_path, "--stage", "a/b")
  assert done.returncode == 1
  expected = "quickstart: stage 'a/b': expected one of shipped, features, generator"
  assert done.stderr.startswith(expected)
  assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_its_stages_end_with_it(environment, tmp_path):
  """A quickstart that is told to end leaves no stage running, and can be called again."""
  command = [sys.executable, "launch/quickstart.py", "--debug", "--from-scratch"]
  command += ["--workdir", str(tmp_path)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    logs = tmp_path / "logs"
    for _ in range(600):  # both lanes have begun
      if (logs / "tower.log").exists() and (logs / "answers.log").exists():
        break
      time.sleep(0.1)
    stages = children.read_text().split()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
  assert len(stages) == 2
  assert not [pid for pid in stages if Path(f"/proc/{pid}").exists()]
  assert not (tmp_path / "done" / "tower.json").exists()
  assert float((tmp_path / "calls" / "total.txt").read_text()) > 0
