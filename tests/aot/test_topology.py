"""Programs compiled for a described TPU, with no TPU present: what lands on each chip.

libtpu is loaded in one child process, so that the tests' own process stays on the CPU.
"""

from pathlib import Path

import libtpu_child
import pytest

pytestmark = pytest.mark.aot
CHILD = Path(__file__).with_name("compile_for_tpu.py")


@pytest.fixture(scope="module")
def compiled():
  """What the child printed: {program: facts}."""
  return libtpu_child.printed(CHILD)


def test_the_topology_is_described(compiled):
  assert compiled["devices"] == {"count": 4, "kind": "TPU v5 lite", "backend_of_child": "cpu"}


def test_splash_runs_as_a_kernel_on_each_shard(compiled):
  facts = compiled["splash"]
  assert facts["kernels"] >= 1, "no Mosaic kernel: attention was interpreted or fell back"
  # 2 of 4 rows, 2 of 4 heads, bfloat16: the queries of one chip.
  assert facts["queries"] == "bf16[2,4096,2,64]"
  assert facts["temp_bytes"] < 16 * 2**20, "a [T, S] matrix of logits was stored"


def test_auto_chooses_splash_on_the_described_mesh(compiled):
  assert compiled["auto"]["kernels"] == compiled["splash"]["kernels"]


def test_xla_attention_has_no_kernel(compiled):
  assert compiled["xla"]["kernels"] == 0
  assert compiled["xla"]["temp_bytes"] > 2 * 2 * 4096**2 * 2, "the bound above tells nothing"


def test_a_sharded_matmul_gathers_in_bfloat16(compiled):
  facts = compiled["matmul"]
  assert facts["argument_bytes"] == facts["expected_argument_bytes"]
  assert facts["gathered"] == ["bf16"], "the cast belongs before the gather"


def test_moments_on_the_host_leave_the_chip_and_come_back_a_layer_at_a_time(compiled):
  """Moved whole they would stand among the temporaries, in and out: more than they took before."""
  plain, host = compiled["moments"]["device"], compiled["moments"]["host"]
  size = host["moments"]
  assert (plain["host_argument"], host["host_argument"]) == (0, size)
  assert plain["argument"] - host["argument"] == size
  # In place there too.
  assert (host["host_alias"], host["host_temp"]) == (size, 0)
  assert host["temp"] - plain["temp"] < size / 2, host
  saved = plain["argument"] + plain["temp"] - host["argument"] - host["temp"]
  assert saved > size / 2
