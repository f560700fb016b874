"""Steps compiled for TPUs that are not there by tools/plan.py: room, operations, slices."""

import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.aot, pytest.mark.timeout(4000)]
ROOT = Path(__file__).parents[2]
GIB = 2**30
SMOKE = "configs/shapes_objective_smoke.py"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
  """Where the plans of this module keep what they compile."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: bash launch/test.sh --setup")
  return tmp_path_factory.mktemp("cache")


def plan(kept: Path, *args: str, name: str = "plan.json") -> dict:
  """What tools/plan.py writes, with only what a user has set; its words are under "said"."""
  out = kept / name
  run = command(kept, *args, f"--json={out}")
  assert run.returncode == 0, run.stderr[-4000:]
  return json.loads(out.read_text()) | {"said": run.stdout}


def command(kept: Path, *args: str) -> subprocess.CompletedProcess[str]:
  env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_", "XLA_"))}
  env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(kept)}
  return subprocess.run(
    [sys.executable, "tools/plan.py", *args],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=3900,
  )


@pytest.fixture(scope="module")
def facts(kept):
  """BLIP3-o 4B on 16 chips of v5e."""
  config = "--config=configs/blip3o_4b_pretrain.py:memory=small"
  return plan(kept, config, "--topology=v5litepod-16", "--prompt-bucket=448", name="4b.json")


def test_it_fits_a_chip(facts):
  """Measured 5.76 whole on each chip (the frozen model), 0.96 and 2.59 GiB of 15.75.

  A moment that is not sharded would add 5 GiB to the arguments; a batch that is not, more to both.
  """
  assert (facts["topology"], facts["chips"]) == ("v5e:4x4", 16)
  assert (facts["batch"], facts["batch_per_chip"], facts["prompt_bucket"]) == (512, 32, 448)
  sizes = facts["bytes_per_chip"]
  assert facts["replicated_bytes"] == pytest.approx(5.76 * GIB, rel=0.01)
  assert sizes["arguments"] - facts["replicated_bytes"] < 1.1 * GIB
  assert sizes["temporaries"] < 4 * GIB
  assert sizes["total"] < sizes["capacity"] == 15.75 * GIB


def test_parameters_are_gathered_in_bfloat16(facts):
  """Whatever the compiler makes of a gather; float32 are norms and sums, of kilobytes."""
  moved = facts["collective_bytes"]
  wide = sum(size for name, size in moved.items() if name.endswith(":bf16"))
  assert wide > 0
  assert sum(size for name, size in moved.items() if name.endswith(":f32")) < wide / 100


@pytest.mark.long
@pytest.mark.parametrize("size", ["4b", "8b"])
def test_operations_are_those_of_the_formula(kept, size):
  """Of the whole depth, nothing recomputed: the compiled text with trip counts and spec 11."""
  asked = [f"--config=configs/blip3o_{size}_pretrain.py", "--topology=v5p-8", "--batch-per-chip=4"]
  facts = plan(kept, *asked, name=f"{size}-v5p.json")
  assert facts["flops_per_sample"] == pytest.approx(facts["flops_per_sample_analytic"], rel=0.05)
  assert facts["step_seconds"] >= facts["step_seconds_by_term"]["compute"]
  again = plan(kept, *asked, name=f"{size}-v5p.json")
  assert again["compiled_before"]
  assert f"compiled before, {again['compiled_before']}" in again["said"]
  assert again["step_seconds"] == facts["step_seconds"]


def test_slices_send_gradients_through_the_network(kept):
  facts = plan(kept, f"--config={SMOKE}", "--topology=v5e:2x2", "--slices=2")
  assert (facts["slices"], facts["chips"], facts["mesh"]["replica"]) == (2, 8, 2)
  sent = {k: v for k, v in facts["collective_bytes"].items() if k.startswith("send:")}
  assert sum(sent.values()) > 0
  assert facts["step_seconds_by_term"]["network"] >= sum(sent.values()) / 3.125e9 * 0.99


def test_what_does_not_fit_is_refused_with_what_would(kept):
  asked = [f"--config={SMOKE}", "--topology=v5e:2x2", "--batch-per-chip=4000000"]
  run = command(kept, *asked, f"--json={kept / 'none.json'}")
  assert run.returncode == 1
  (line,) = run.stderr.strip().splitlines()[-1:]
  assert "v5e:2x2: the step does not fit: it needs" in line
  assert "of 15.75 GiB a chip" in line
  assert "what would fit: about" in line
  assert not (kept / "none.json").exists()
