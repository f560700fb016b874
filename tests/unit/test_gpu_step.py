"""The benchmark against PyTorch: what it refuses, what it prints; as a whole with --all."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  import gpu_step

  return gpu_step


def test_without_a_gpu_it_takes_the_small_size_and_says_so(script, monkeypatch):
  monkeypatch.setenv("PATH", "")
  options = script.parse([])
  assert (options.size, options.dtype, options.gpu) == ("small", "float32", False)
  assert "on the CPU: no GPU here" in script.described(options)
  assert "2 of 2 layers of the dit" in script.described(options)


def test_with_a_gpu_it_takes_the_large_size(script, monkeypatch, tmp_path):
  """A driver's program that lists one."""
  program = tmp_path / "nvidia-smi"
  program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
  options = script.parse(["--layers", "30"])
  assert (options.size, options.dtype, options.gpu) == ("gpu", "bfloat16", True)
  assert "24 of 24 layers of the dit, 30 of 36 layers of the backbone" in script.described(options)


def test_outputs_that_differ_stop_it_before_anything_is_timed(script):
  a = {"output": np.ones((2, 3), np.float32), "gradient w": np.ones(4, np.float32)}
  near = {"output": a["output"] * 1.00005, "gradient w": a["gradient w"] * 1.0005}
  found = script.compare("torch", "dit", a, near, "float32")
  assert found == pytest.approx(5e-4, rel=1e-2)
  for far in (a["output"] * 1.001, np.full((2, 3), np.nan, np.float32)):
    with pytest.raises(SystemExit, match=r"dit: output of jax and torch differ.*nothing is timed"):
      script.compare("torch", "dit", a, near | {"output": far}, "float32")
  with pytest.raises(SystemExit, match=r"shapes \(2, 3\) and \(3, 2\)"):
    script.compare("torch", "dit", a, near | {"output": a["output"].T}, "float32")
  with pytest.raises(SystemExit, match="dit: jax has"):
    script.compare("torch", "dit", a, {"output": a["output"]}, "float32")


def test_the_table_has_medians_and_ratios(script):
  facts = {
    "medians": {"dit": {"jax": 0.1, "torch": 0.25, "compiled": 0.15}},
    "distances": {"dit": {"torch": 1e-3, "compiled": 2e-3}},
  }
  assert script.table(facts).splitlines() == [
    "| case | jax, ms | torch, ms | compiled, ms | torch / jax | compiled / jax "
    "| largest distance |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    "| dit | 100 | 250 | 150 | 2.50 | 1.50 | 2.0e-03 |",
  ]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--sides", "torch"], "--sides: jax is what the others are compared with"),
    (["--runs", "0"], "--runs and --rounds are at least 1"),
  ],
)
def test_arguments_that_make_no_sense(script, arguments, message, capsys):
  with pytest.raises(SystemExit):
    script.parse(arguments)
  assert message in capsys.readouterr().err


def test_a_pytorch_for_cpus_on_a_machine_with_a_gpu_is_refused(script, tmp_path, monkeypatch):
  """It would be timed on the CPU."""
  pytest.importorskip("torch")
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  arguments = ["--side", "torch", "--phase", "check", "--work", str(tmp_path), "--gpu"]
  with pytest.raises(SystemExit, match="it sees no GPU here, although nvidia-smi lists one"):
    script.answer(script.parse(arguments))


@pytest.mark.slow
def test_all_cases_on_the_cpu(tmp_path):
  """Outputs, losses and gradients of both sides are equal; then both are timed."""
  pytest.importorskip("torch")
  file = tmp_path / "facts.json"
  command = [sys.executable, BENCHMARKS / "gpu_step.py", "--size", "small", "--dtype", "float32"]
  command += ["--runs", "1", "--rounds", "1", "--sides", "jax", "torch", "--json", file]
  environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true", "PYTHONPATH": ""}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stderr
  facts = json.loads(file.read_text())
  assert set(facts["medians"]) == set(facts["distances"]) == {"dit", "backbone", "sampler"}
  assert all(0 < d["torch"] < 1e-3 for d in facts["distances"].values())
  assert "| sampler |" in done.stdout
