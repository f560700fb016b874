"""Names of slices and machines, and the table of chips."""

import pytest

from blip3o_jax import chips
from blip3o_jax.plan import topology


@pytest.mark.parametrize(
  ("name", "found", "count"),
  [
    ("v5p:4x4x4", "v5p:4x4x4", 64),
    ("v5p-128", "v5p:4x4x4", 64),
    ("v4-512", "v4:4x8x8", 256),
    ("v5litepod-16", "v5e:4x4", 16),
    ("v5e-8", "v5e:2x4", 8),
    ("v6e-64", "v6e:8x8", 64),
    ("tpu7x-8", "tpu7x:2x2x1", 4),
    ("TPU7x:4x4x4", "tpu7x:4x4x4", 64),
    ("ct6e-standard-4t", "v6e:2x2", 4),
    ("ct5p-hightpu-4t:4x4x4", "v5p:4x4x4", 64),
    ("a3-highgpu-8g", "h100:8", 8),
    ("b200:16", "b200:16", 16),
  ],
)
def test_names(name, found, count):
  out = topology.resolve(name)
  assert out.name == found
  product = 1
  for n in out.shape:
    product *= n
  assert product == count
  assert out.chip is chips.CHIPS[found.partition(":")[0]]


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("v99:1", "unknown; known are NAME:AxB"),
    ("v5p-7", "no slice has this size; known are v5p-8 (2x2x1)"),
    ("v6e-12", "known are v6e-1 (1x1), v6e-4 (2x2)"),
    ("v5e:4x4x4", "expected v5e:AxB"),
    ("h100:8x8", "expected h100:N"),
    ("v5p:4x0x4", "expected v5p:AxBxC"),
  ],
)
def test_other_names_are_refused_with_the_known(name, said):
  with pytest.raises(ValueError, match="--topology") as error:
    topology.resolve(name)
  assert said in str(error.value)


def test_slices_are_of_tpus():
  assert topology.resolve("v5e:4x4", 2).slices == 2
  with pytest.raises(ValueError, match=r"--slices 2: of TPUs; .*h100:16"):
    topology.resolve("h100:8", 2)


def test_the_table():
  for chip in chips.CHIPS.values():
    assert chip.source
    assert chip.bf16 <= chip.int8 and chip.bf16 <= chip.fp8  # noqa: PT018
    assert chip.usable <= chip.memory * 1.01
  assert chips.of_kind("TPU v5 lite") is chips.CHIPS["v5e"]
  assert chips.of_kind("NVIDIA H100 PCIe") is None, "another chip than the one in the table"


def test_devices_of_a_chip_share_what_it_has():
  class Device:
    device_kind = "TPU7x"

    def __init__(self, core):
      self.id, self.coords, self.slice_index = core, (core // 2, 0, 0), None

  devices = [Device(i) for i in range(8)]
  assert chips.devices_a_chip(devices) == 2
  assert chips.peak(devices) == 2307e12 / 2
  assert chips.capacity(devices) == int(94.75 * 2**30)
