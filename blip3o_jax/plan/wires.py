"""What a compiled program sends to other devices, over which wires, and what of it is waited for.

A transfer whose start and end stand apart in the text runs beside what stands between them: async
pairs, calls to the cores of a chip that move data, the fusions of TPUs that carry a gather along,
and the send/recv pairs by which slices talk.
"""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import numpy as np

from blip3o_jax import chips
from blip3o_jax.plan.program import CARRIED
from blip3o_jax.plan.program import Computation
from blip3o_jax.plan.program import Instruction
from blip3o_jax.plan.program import Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
STARTS, ENDS = ("async-start", "call-start"), ("async-done", "call-done")
RUNTIME = "xla_megascale_runtime"


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One collective, or one message to the runtime between slices.

  Attributes:
    kind: of KINDS, "send" or "recv". sizes: {dtype: bytes of the results on one device}.
    group: the devices of its first group, by their place in the mesh; () is all of them. Of a
      permutation, the first sender and whom it sends to.
  """

  kind: str
  sizes: Mapping[str, int]
  group: tuple[int, ...]

  def sent(self, devices: int) -> float:
    """Bytes that a device sends by the best-known algorithm (rings), of `devices` in all."""
    size, n = sum(self.sizes.values()), len(self.group) or devices
    if self.kind == "all-reduce":
      return 2 * size * (n - 1) / n
    if self.kind == "reduce-scatter":
      return size * (n - 1)
    return size * (n - 1) / n if self.kind in ("all-gather", "all-to-all") else size


@dataclasses.dataclass(frozen=True)
class Event:
  """What happens next in a computation: cycles pass, a transfer starts or is waited for, a loop.

  Attributes:
    cycles: of the chip. key: of a transfer. start, done: whether it starts, must have ended.
    inner: a computation that runs `times` times.
  """

  cycles: int = 0
  key: str = ""
  start: Transfer | None = None
  done: bool = False
  inner: str = ""
  times: int = 1


def events(program: Program, name: str) -> list[Event]:
  """What happens in one computation, in order."""
  home = program.computations[name]
  out: list[Event] = []
  for line in home.lines:
    if line.op == "while":
      condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
      skip, times = condition[1] if condition else "", program.trips(line, home)
      out += [Event(inner=x, times=times) for x in line.called if x != skip]
    elif line.op in ("call", "conditional"):
      out += [Event(inner=x) for x in line.called]
    else:
      out += _of_line(program, home, line)
  return out


def _of_line(program: Program, home: Computation, line: Instruction) -> list[Event]:
  base = line.op.removesuffix("-start").removesuffix("-done")
  passing = [Event(cycles=line.cycles)] if line.cycles else []
  if line.op in ("send", "recv") and RUNTIME in line.rest:
    return [Event(key=line.name, start=_transfer(line, line.op))]
  if line.op in ("send-done", "recv-done") and RUNTIME in line.rest:
    return [Event(key=line.operands[0], done=True)]
  if base in KINDS and line.op.endswith("-done"):
    return [*passing, Event(key=line.operands[0], done=True)]
  if base in KINDS:
    started = Event(key=line.name, start=_transfer(line, base))
    wait = [] if line.op.endswith("-start") else [Event(key=line.name, done=True)]
    return [*passing, started, *wait]
  if line.op in ENDS or (line.op == "async-update" and line.operands):
    return [Event(key=_origin(home, line), done=line.op in ENDS)]
  if line.op == "fusion" or line.op in STARTS:
    return [*_carried(program, line), *passing]
  return passing


def _origin(home: Computation, line: Instruction) -> str:
  while line.op not in STARTS and line.operands and line.operands[0] in home.by_name:
    line = home.by_name[line.operands[0]]
  return line.name


def _carried(program: Program, line: Instruction) -> list[Event]:
  """Transfers inside a fusion: its start, its end, a part of the way, or all of it."""
  out: list[Event] = []
  for name in line.called:
    inside = program.computations[name].lines
    targets = " ".join(x.rest for x in inside if x.op == "custom-call")
    starts, ends = "AsyncCollectiveStart" in targets, "AsyncCollectiveDone" in targets
    for each in inside:
      if each.op not in KINDS:
        continue
      channel = re.search(r"channel_id=(\d+)", each.rest)
      key = f"channel {channel[1]}" if channel else each.name
      if line.op in STARTS:
        out.append(Event(key=line.name, start=_transfer(each, each.op)))
      elif starts:
        out.append(Event(key=key, start=_transfer(each, each.op)))
      elif ends:
        out.append(Event(key=key, done=True))
      elif CARRIED not in each.rest:
        out += [Event(key=key, start=_transfer(each, each.op)), Event(key=key, done=True)]
  return out


def _transfer(line: Instruction, kind: str) -> Transfer:
  found = [a for a in line.arrays if a.dtype != "token"]
  if line.op.endswith("-start") or kind in ("send", "recv"):  # with operands, numbers of the pair
    found = [a for a in found if a.dims or a.dtype not in ("u32", "s32")]
    whole = line.op.endswith("-start") and kind in ("all-gather", "collective-permute")
    found = found[len(found) // 2 :] if whole else found
  sizes: Counter[str] = Counter()
  for array in found:
    sizes[array.dtype] += array.bytes
  pair = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line.rest)
  members = (int(pair[1]), int(pair[2])) if pair else group(line.rest)
  return Transfer(kind, dict(sizes), members)


def group(text: str) -> tuple[int, ...]:
  """The first group of `replica_groups`, in each form that XLA prints; () is all devices."""
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
    return tuple(_numbers(found[1]))
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
    return tuple(_listed(found[2], found[3])[: _numbers(found[1])[-1]].tolist())
  listed = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
  if found := re.search(rf"replica_groups=mesh\[([^\]]*)\]{listed}\s*\{{([^}}]*)\}}", text):
    axes = re.findall(r"'(\w+)'=(\d+)", found[1])
    over = set(re.findall(r"'(\w+)'", found[4]))
    sizes = ",".join(size for _, size in axes)
    mesh = _listed(found[2] or sizes, found[3]).reshape(_numbers(sizes))
    return tuple(mesh[tuple(slice(None) if n in over else 0 for n, _ in axes)].ravel().tolist())
  return ()


def _listed(sizes: str, order: str | None) -> np.ndarray:
  """Devices 0 to n - 1 in the order of the dims "4,2", transposed by "1,0" where there is one."""
  shape = _numbers(sizes)
  devices = np.arange(math.prod(shape)).reshape(shape)
  return (devices.transpose(_numbers(order)) if order else devices).ravel()


def _numbers(text: str) -> list[int]:
  return [int(i) for i in text.split(",")]


def totals(program: Program) -> dict[str, dict[str, int]]:
  """{"kind:dtype": {"count", "bytes"}} of a run, loops counted; of the results."""
  out: dict[str, Counter[str]] = {}

  def add(name: str, times: int) -> None:
    for event in events(program, name):
      if event.inner:
        add(event.inner, times * event.times)
      for dtype, size in event.start.sizes.items() if event.start else ():
        found = out.setdefault(f"{event.start.kind}:{dtype}", Counter())  # type: ignore[union-attr]
        found["count"] += times
        found["bytes"] += size * times

  add(program.entry, 1)
  return {name: dict(found) for name, found in sorted(out.items())}


class Wires:
  """Rates between devices of a mesh: of links within a slice, and of the network between slices.

  Args:
    chip: of the table. devices: in the order of the mesh, with `coords` where they are TPUs.
  """

  def __init__(self, chip: chips.Chip, devices: Sequence[Any]):
    self.chip, self.devices = chip, devices
    self.shared = chips.devices_a_chip(devices)
    self.slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
    self.places = [tuple(getattr(d, "coords", None) or (d.id,)) for d in devices]
    self.extent = [len(set(axis)) for axis in zip(*self.places, strict=True)]
    self._rates: dict[tuple[int, ...], float] = {}

  def seconds(self, transfer: Transfer) -> float:
    """How long a transfer takes when it has the wires for itself; no latencies."""
    sent = transfer.sent(len(self.devices))
    if transfer.kind == "send":  # of a sum over the slices
      return 2 * sent * (self.slices - 1) / self.slices / (self.chip.network / self.shared)
    if transfer.kind == "recv":
      return 0.0  # the other direction of the same wire
    if transfer.kind == "collective-permute":
      return sent / (self.chip.link / self.shared)
    return sent / self.rate(transfer.group)

  def rate(self, members: tuple[int, ...]) -> float:
    """Bytes/s that a device sends within a group, in rings along the axes that the group spans."""
    if members not in self._rates:
      at = [self.places[i] for i in members if i < len(self.places)] or self.places
      links = 0
      for axis, extent in zip(zip(*at, strict=True), self.extent, strict=True):
        length = len(set(axis))
        closed = self.chip.wrap and length == extent and not extent % self.chip.wrap
        links += 0 if length < 2 else 2 if closed else 1
      # Two devices of one chip pass on through its memory.
      within = self.chip.bandwidth / 2
      self._rates[members] = (self.chip.link * links if links else within) / self.shared
    return self._rates[members]


@dataclasses.dataclass(frozen=True)
class Time:
  """Seconds of a run. compute: the compiler's cycles. exposed: waited for wires. wires, network:
  of all transfers, within a slice and between slices, waited for or not.
  """

  compute: float = 0.0
  exposed: float = 0.0
  wires: float = 0.0
  network: float = 0.0

  def __add__(self, other: "Time") -> "Time":
    return Time(*(a + b for a, b in zip(_plain(self), _plain(other), strict=True)))

  def __mul__(self, times: int) -> "Time":
    return Time(*(a * times for a in _plain(self)))


def _plain(time: Time) -> tuple[float, ...]:
  return (time.compute, time.exposed, time.wires, time.network)


def timeline(program: Program, wires: Wires, seconds_a_cycle: float) -> Time:
  """How a run passes: transfers queue, each permutation, the others and the network by themselves.

  A transfer that is still under way when a loop's body ends is waited for there, so what a loop
  hides behind its next round counts as not hidden.
  """
  known: dict[str, Time] = {}

  def run(name: str) -> Time:
    if name in known:
      return known[name]
    now, total = 0.0, Time()
    free: dict[Any, float] = {}  # when the wires of a queue are
    ends: dict[str, float] = {}
    for event in events(program, name):
      passed = event.cycles * seconds_a_cycle
      now, total = now + passed, total + Time(compute=passed)
      if event.inner:
        inner = run(event.inner) * event.times
        now, total = now + inner.compute + inner.exposed, total + inner
      if event.start:
        far = event.start.kind in ("send", "recv")
        took = wires.seconds(event.start)
        queue = event.start.group if event.start.kind == "collective-permute" else far
        free[queue] = ends[event.key] = max(free.get(queue, 0.0), now) + took
        total += Time(network=took) if far else Time(wires=took)
      if event.done and event.key in ends:
        waited = max(ends.pop(event.key) - now, 0.0)
        now, total = now + waited, total + Time(exposed=waited)
    left = max([end - now for end in ends.values()], default=0.0)
    known[name] = total + Time(exposed=max(left, 0.0))
    return known[name]

  return run(program.entry)
