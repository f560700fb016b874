"""What chips are: their peaks, memory and wires, and how devices that JAX lists belong to them.

The table is of what makers say, a source a chip, all per chip and without sparsity. Knows nothing
else; imports no jax.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip. Rates are bytes/s and operations/s, of a chip.

  Attributes:
    name: as a topology's name begins. kinds: what JAX calls its devices.
    bf16, int8, fp8: peaks of the matrix units; a chip without a faster one has that of bf16.
    memory: bytes that are sold. usable: bytes that the compiler gives to a program; for GPUs
      those sold, of which JAX takes three quarters at its start unless told otherwise.
    bandwidth: of the memory. link: of one wire to another chip, in one direction. links: wires.
    network: of the data-centre network, in one direction. wrap: how long a dimension of a slice
      must be (and a multiple of it) to be closed to a ring; 0 for switches, which close always.
    dims: of a slice. cores: that the cloud counts a chip in its names. gain: the low precision in
      which its matrix units are faster than in bfloat16, by the compiler's own cycles, or "".
    int8_step: how many times faster the step of the 8B pretraining is with its frozen language
      model in int8 (`int8_backward`), by the plan; 0 where it was not planned.
    source: of the figures.
  """

  name: str
  kinds: tuple[str, ...]
  bf16: float
  int8: float
  fp8: float
  memory: float
  usable: float
  bandwidth: float
  link: float
  links: int
  network: float
  wrap: int
  dims: int
  cores: int = 1
  gain: str = ""
  int8_step: float = 0.0
  source: str = ""

  @property
  def is_tpu(self) -> bool:
    """Whether its compiler can be had without it."""
    return self.dims > 1


TPU = "https://cloud.google.com/tpu/docs/"
# usable: what the compiler of libtpu 0.0.42 and later gives a program, read off its refusals.
# link: the bandwidth of a chip in both directions / links / 2. gain: 8192^3 matmuls by its cycles.
# int8_step: milliseconds of docs/performance.md, in bfloat16 and in int8.
CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      kinds=("TPU v4",),
      bf16=275e12,
      int8=275e12,
      fp8=275e12,
      memory=32 * GIB,
      usable=30.5 * GIB,
      bandwidth=1200e9,
      link=50e9,
      links=6,
      network=6.25e9,
      wrap=4,
      dims=3,
      cores=2,
      source=f"{TPU}v4; wires: Jouppi et al. 2023, arXiv 2304.01433; network: as v5p",
    ),
    Chip(
      name="v5e",
      kinds=("TPU v5 lite", "TPU v5e"),
      bf16=197e12,
      int8=393e12,
      fp8=197e12,
      memory=16 * GIB,
      usable=15.75 * GIB,
      bandwidth=819e9,
      link=50e9,
      links=4,
      network=3.125e9,  # 6.4 Tbit/s a pod of 256
      wrap=16,
      dims=2,
      gain="int8",
      source=f"{TPU}v5e",
    ),
    Chip(
      name="v5p",
      kinds=("TPU v5", "TPU v5p"),
      bf16=459e12,
      int8=918e12,
      fp8=459e12,
      memory=95 * GIB,
      usable=95.74 * GIB,
      bandwidth=2765e9,
      link=100e9,
      links=6,
      network=6.25e9,
      wrap=4,
      dims=3,
      cores=2,
      gain="int8",
      int8_step=227.0 / 178.3,
      source=f"{TPU}v5p; int8: twice bf16, as announced on 6 December 2023",
    ),
    Chip(
      name="v6e",
      kinds=("TPU v6 lite", "TPU v6e"),
      bf16=918e12,
      int8=1836e12,
      fp8=918e12,
      memory=32 * GIB,
      usable=31.25 * GIB,
      bandwidth=1638e9,
      link=100e9,
      links=4,
      network=12.5e9,
      wrap=16,
      dims=2,
      gain="int8",
      int8_step=150.7 / 148.6,
      source=f"{TPU}v6e",
    ),
    Chip(
      name="tpu7x",
      kinds=("TPU7x", "TPU v7x"),
      bf16=2307e12,
      int8=2307e12,
      fp8=4614e12,
      memory=192 * GIB,
      usable=189.5 * GIB,
      bandwidth=7380e9,
      link=100e9,
      links=6,
      network=12.5e9,
      wrap=4,
      dims=3,
      cores=2,
      gain="e4m3",
      source=f"{TPU}tpu7x",
    ),
    Chip(
      name="a100",
      kinds=("NVIDIA A100-SXM4-80GB",),
      bf16=312e12,
      int8=624e12,
      fp8=312e12,
      memory=80e9,
      usable=80e9,
      bandwidth=2039e9,
      link=25e9,
      links=12,
      network=25e9,
      wrap=0,
      dims=1,
      source="NVIDIA A100 datasheet, SXM 80 GB; network: DGX A100, 200 Gbit/s a GPU",
    ),
    Chip(
      name="h100",
      kinds=("NVIDIA H100 80GB HBM3",),
      bf16=989e12,
      int8=1979e12,
      fp8=1979e12,
      memory=80e9,
      usable=80e9,
      bandwidth=3350e9,
      link=25e9,
      links=18,
      network=50e9,
      wrap=0,
      dims=1,
      gain="e4m3",
      source="NVIDIA H100 datasheet, SXM; network: DGX H100, 400 Gbit/s a GPU",
    ),
    Chip(
      name="h200",
      kinds=("NVIDIA H200",),
      bf16=989e12,
      int8=1979e12,
      fp8=1979e12,
      memory=141e9,
      usable=141e9,
      bandwidth=4800e9,
      link=25e9,
      links=18,
      network=50e9,
      wrap=0,
      dims=1,
      gain="e4m3",
      source="NVIDIA H200 datasheet, SXM; network: DGX H200, 400 Gbit/s a GPU",
    ),
    Chip(
      name="b200",
      kinds=("NVIDIA B200",),
      bf16=2250e12,
      int8=4500e12,
      fp8=4500e12,
      memory=180e9,
      usable=180e9,
      bandwidth=8000e9,
      link=50e9,
      links=18,
      network=50e9,
      wrap=0,
      dims=1,
      gain="e4m3",
      source="NVIDIA Blackwell architecture brief, HGX B200; memory and network: DGX B200",
    ),
  )
}


# GPUs of which no more is asked than whether a model fits: {name: (bytes, source)}, as sold.
CARDS: dict[str, tuple[float, str]] = {
  "t4": (16e9, "NVIDIA T4 datasheet"),
  "l4": (24e9, "NVIDIA L4 datasheet"),
  "l40s": (48e9, "NVIDIA L40S datasheet"),
  "rtx3090": (24e9, "NVIDIA GeForce RTX 3090 specifications"),
  "rtx4090": (24e9, "NVIDIA GeForce RTX 4090 specifications"),
  "rtx5090": (32e9, "NVIDIA GeForce RTX 5090 specifications"),
  "a100-40gb": (40e9, "NVIDIA A100 datasheet, 40 GB"),
}
PAIRED = ("tpu7x",)  # JAX lists each chip as two devices


def room(name: str) -> int:
  """Bytes that a program may use on one device of a kind, by its name in `CHIPS` or `CARDS`.

  Raises:
    ValueError: neither has it; the known ones are listed.
  """
  if name in CHIPS:
    return int(CHIPS[name].usable / (2 if name in PAIRED else 1))
  if name in CARDS:
    return int(CARDS[name][0])
  raise ValueError(f"device {name!r}: expected one of {', '.join((*CHIPS, *CARDS))}")


def of_kind(kind: str) -> Chip | None:
  """The chip of a `device_kind`; None for one that the table has not (a CPU, another GPU)."""
  return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def devices_a_chip(devices: Sequence[Any]) -> int:
  """How many of these JAX devices share a chip: TPU7x lists two, v4 may, by their coordinates."""
  places = {(getattr(d, "slice_index", 0), tuple(getattr(d, "coords", (d.id,)))) for d in devices}
  return len(devices) // len(places)


def capacity(devices: Sequence[Any]) -> int:
  """Bytes that a program may use on one of these (equal) devices; 0 where the table has no such."""
  chip = of_kind(devices[0].device_kind)
  return int(chip.usable / devices_a_chip(devices)) if chip else 0


def peak(devices: Sequence[Any], dtype: str = "bf16") -> float:
  """Operations/s of one of these (equal) devices; 0 where the table has no such.

  Args:
    dtype: "bf16", "int8" or "fp8".
  """
  chip = of_kind(devices[0].device_kind)
  rates = {"bf16": chip.bf16, "int8": chip.int8, "fp8": chip.fp8} if chip else {dtype: 0.0}
  return rates[dtype] / devices_a_chip(devices)
