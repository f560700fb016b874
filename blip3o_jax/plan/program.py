"""A compiled program, read from its text: computations, loops with trip counts, operations, bytes.

`Compiled.cost_analysis` sees the body of a loop once; here everything is counted as often as it
runs. Knows only the text that XLA prints; no chip, no jax.
"""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import functools
import math
import re

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
BYTES |= {f"{sign}{bits}": max(bits // 8, 1) for sign in "su" for bits in (2, 4, 8, 16, 32, 64)}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d[a-z]*)?)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
NOTHING = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"}
NOTHING |= {"conditional", "after-all", "partition-id", "replica-id", "copy-done", "opt-barrier"}
IN_PLACE = "output_to_operand_aliasing={{}: (0, {})}"  # of a fusion that only changes tiles
CARRIED = "async_collective_fusion_config"  # of a transfer, in a fusion that it runs beside


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape. on_chip: whether it lies in fast memory, by its layout."""

  dtype: str
  dims: tuple[int, ...]
  on_chip: bool

  @property
  def bytes(self) -> int:
    """Its size; what has no dtype with a size (a token) has none."""
    size = 1 if self.dtype.startswith("f8") else BYTES.get(self.dtype, 0)
    return math.prod(self.dims) * size


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `name = shape op(operands), rest`."""

  name: str
  shape: str
  op: str
  operands: tuple[str, ...]
  rest: str
  root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of the result, of a tuple all."""
    return arrays(self.shape)

  @property
  def cycles(self) -> int:
    """The compiler's estimate for one run; 0 where it gives none, for which it also writes 2^63."""
    found = _CYCLES.search(self.rest)
    cycles = int(found[1]) if found else 0
    return cycles if cycles < 2**62 else 0

  @property
  def called(self) -> list[str]:
    """The computations that it runs (not a loop's condition)."""
    names = _CALLED.findall(self.rest)
    for branches in _BRANCHES.findall(self.rest):
      names += [name.strip().lstrip("%") for name in branches.split(",")]
    return names


def arrays(shape: str) -> tuple[Array, ...]:
  """The arrays in the text of a shape."""
  return tuple(
    Array(dtype, tuple(int(d) for d in dims.split(",") if d), "S(1)" in layout)
    for dtype, dims, layout in _ARRAY.findall(shape)
  )


class Computation:
  """Instructions in the order in which they run."""

  def __init__(self, name: str):
    self.name = name
    self.lines: list[Instruction] = []

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    """{name: instruction}."""
    return {line.name: line for line in self.lines}

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """{name: the instructions that have it as an operand}."""
    out: dict[str, list[Instruction]] = {}
    for line in self.lines:
      for name in dict.fromkeys(line.operands):
        out.setdefault(name, []).append(line)
    return out

  def readers(self, name: str) -> Iterator[tuple[Instruction, str]]:
    """(who reads an array, as which name), also where it has another name or tiles in place."""
    for user in self.users.get(name, ()):
      if not user.root and (user.op == "bitcast" or IN_PLACE in user.rest):
        yield from self.readers(user.name)
      else:
        yield user, name

  @property
  def root(self) -> Instruction:
    """What the computation gives."""
    return next((line for line in self.lines if line.root), self.lines[-1])


class Program:
  """Everything of a compiled text.

  Raises:
    ValueError: the text has no entry.
  """

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    self.entry = ""
    now: Computation | None = None
    for line in re.sub(r'\n(?="|}})', " ", text).splitlines():  # a kernel's metadata has lines
      if line.startswith("}"):
        now = None
      elif now is None:
        if line.endswith("{") and (head := _HEAD.match(line)):
          now = self.computations[head[2]] = Computation(head[2])
          self.entry = head[2] if head[1] else self.entry
      elif (found := _LINE.match(line)) and (read := _read(found, line)):
        now.lines.append(read)
    if not self.entry:
      raise ValueError("the compiled text has no entry computation")
    self._inner: dict[str, Counter[str]] = {}

  def trips(self, loop: Instruction, home: Computation) -> int:
    """How often the body of a `while` runs; 1 where the text does not say."""
    if known := _KNOWN.search(loop.rest):
      return int(known[1])
    condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]  # type: ignore[index]
    bounds = [n for line in condition.lines if (n := _integer(line)) is not None]
    if not bounds:
      return 1
    index = next((_index(x) for x in condition.lines if x.op == "get-tuple-element"), 0)
    (body,) = [name for name in loop.called if name != condition.name]
    stride, first = self._stride(body, index), self._first(loop, home, index)
    more = 1 if "direction=LE" in condition.root.rest else 0
    return max(math.ceil((max(bounds) + more - first) / stride), 0)

  def _stride(self, body: str, index: int) -> int:
    lines = self.computations[body].by_name
    root = self.computations[body].root
    made = lines.get(root.operands[index]) if index < len(root.operands) else None
    while made is not None and made.op in ("copy", "bitcast"):
      made = lines.get(made.operands[0])
    if made is None or made.op != "add":
      return 1
    steps = [n for x in made.operands if x in lines and (n := _integer(lines[x])) is not None]
    return abs(steps[0]) or 1 if steps else 1

  def _first(self, loop: Instruction, home: Computation, index: int) -> int:
    made = home.by_name.get(loop.operands[0])
    if made is None or made.op != "tuple" or index >= len(made.operands):
      return 0
    made = home.by_name.get(made.operands[index])
    while made is not None and made.op in ("copy", "bitcast"):
      made = home.by_name.get(made.operands[0])
    return (_integer(made) or 0) if made is not None else 0

  def walk(self) -> Iterator[tuple[Computation, Instruction, int]]:
    """(computation, instruction, how often it runs) of all that runs by itself, fusions whole."""
    stack = [(self.entry, 1)]
    while stack:
      name, times = stack.pop()
      home = self.computations[name]
      for line in home.lines:
        yield home, line, times
        if line.op == "while":
          condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
          inner = times * self.trips(line, home)
          stack += [(x, inner) for x in line.called if not condition or x != condition[1]]
        elif line.op in ("call", "conditional", "async-start"):
          stack += [(x, times) for x in line.called if x in self.computations]

  @property
  def cycles(self) -> int:
    """The compiler's cycles of one run, without what waits for wires."""
    return sum(line.cycles * times for _, line, times in self.walk())

  def operations(self) -> Counter[str]:
    """{"bf16" | "int8" | "fp8": operations} of dots and convolutions; a multiply-add is two."""
    out: Counter[str] = Counter()
    for home, line, times in self.walk():
      for kind, count in self._operations(home, line).items():
        out[kind] += count * times
    return out

  def _operations(self, home: Computation, line: Instruction) -> Counter[str]:
    if line.op in ("dot", "convolution"):
      first, second = (home.by_name[x].arrays[0] for x in line.operands[:2])
      count = _dot(line, first) if line.op == "dot" else _convolution(line, first, second)
      return Counter({_kind(first, second): count})
    if line.op == "custom-call":
      return _kernel(line, [a for x in line.operands for a in home.by_name[x].arrays[:1]])
    out: Counter[str] = Counter()
    if line.op == "fusion":
      for name in line.called:
        if name not in self._inner:
          inside = self.computations[name]
          self._inner[name] = sum((self._operations(inside, x) for x in inside.lines), Counter())
        out += self._inner[name]
    return out

  def memory_bytes(self) -> int:
    """Bytes read from and written to the chip's memory: operands and results not in fast memory.

    Of an array of which a fusion takes or sets a slice, the slice counts. An upper bound: what two
    instructions pass on within a cache is counted twice.
    """
    return sum(self._moved(home, line) * times for home, line, times in self.walk())

  def _moved(self, home: Computation, line: Instruction) -> int:
    if line.op in NOTHING or line.op.endswith("-done") or line.op in ("send", "recv"):
      return 0
    if "S(5)" in line.shape:  # to or from the host's memory: a copy, or a slice of what lies there
      return min(a.bytes for a in line.arrays if a.dims)
    if line.op == "copy-start":
      return (2 if len({a.on_chip for a in line.arrays[:2]}) == 1 else 1) * line.arrays[0].bytes
    if line.op in ("dynamic-slice", "gather", "slice"):
      return sum(2 * a.bytes for a in line.arrays if not a.on_chip)
    taken: dict[int, int] = {}
    came, went = set[int](), set[int]()
    if line.op == "fusion":
      taken, (came, went) = self._slices(line), self._passing(line)
    total = 0
    for i, name in enumerate(line.operands):
      made = home.by_name.get(name)
      for array in made.arrays if made is not None and i not in came else ():
        total += 0 if array.on_chip else min(taken.get(i, array.bytes), array.bytes)
    aliased = sum(size for i, size in taken.items() if i < 0)
    written = sum(a.bytes for i, a in enumerate(line.arrays) if not a.on_chip and i not in went)
    return total + (min(aliased, written) if aliased else written)

  def _passing(self, line: Instruction) -> tuple[set[int], set[int]]:
    """Operands and results of a fusion that belong to a transfer which it only carries along."""
    inside = self.computations[line.called[0]]
    carried = {x.name for x in inside.lines if CARRIED in x.rest}
    if not carried:
      return set(), set()
    own = carried | {inside.root.name}
    waiting = [
      x
      for x in inside.lines
      if x.op == "parameter" and own.issuperset(y.name for y in inside.users.get(x.name, ()))
    ]
    through = carried | {x.name for x in waiting}
    came = {int(x.operands[0]) for x in waiting}
    return came, {i for i, name in enumerate(inside.root.operands) if name in through}

  def _slices(self, line: Instruction) -> dict[int, int]:
    """{operand: bytes of it that a fusion touches} where less than all; -1: of its result."""
    inside = self.computations[line.called[0]]
    out: dict[int, int] = {}
    for each in inside.lines:
      if each.op != "parameter":
        continue
      index, size = int(each.operands[0] if each.operands else 0), 0
      for user, name in inside.readers(each.name):
        if user.op == "dynamic-slice" and user.operands[0] == name:
          size += user.arrays[0].bytes
        elif user.op == "dynamic-update-slice" and user.operands[0] == name:
          update = inside.by_name[user.operands[1]].arrays[0].bytes
          size += update
          out[-1 - index] = update
        elif user.op == "fusion" and set(places := _at(user, name)) <= set(
          inner := self._slices(user)
        ):
          size += sum(inner[i] for i in places)
        else:
          break
      else:
        out[index] = size
    return out


def _at(user: Instruction, name: str) -> list[int]:
  """Which operands of an instruction are `name`."""
  return [i for i, operand in enumerate(user.operands) if operand == name]


def _read(found: re.Match[str], line: str) -> Instruction | None:
  at = end = found.end()
  if line[at] == "(":  # a tuple, whose layouts have parentheses of their own
    depth = 0
    for end in range(at, len(line)):
      depth += {"(": 1, ")": -1}.get(line[end], 0)
      if not depth:
        break
    end += 1
  else:
    end = line.find(" ", at)
  opened = line.find("(", end)
  if end < 0 or opened < 0:
    return None
  depth, close = 0, opened
  for close in range(opened, len(line)):
    depth += {"(": 1, ")": -1}.get(line[close], 0)
    if not depth:
      break
  inner, op = line[opened + 1 : close], line[end + 1 : opened]
  named = tuple(re.findall(r"%([\w.\-]+)", inner))
  if op in ("parameter", "constant"):
    named = (inner,)
  return Instruction(found[2], line[at:end], op, named, line[close + 1 :], bool(found[1]))


def _integer(line: Instruction) -> int | None:
  """The value of a whole constant."""
  if line.op != "constant" or not re.match(r"[su]\d+\[\]", line.shape):
    return None
  return int(line.operands[0]) if re.fullmatch(r"-?\d+", line.operands[0]) else None


def _index(line: Instruction) -> int:
  found = re.search(r"index=(\d+)", line.rest)
  return int(found[1]) if found else 0


def _kind(*operands: Array) -> str:
  if all(a.dtype in ("s8", "u8", "s4", "u4") for a in operands):
    return "int8"
  return "fp8" if all(a.dtype.startswith("f8") for a in operands) else "bf16"


def _dot(line: Instruction, first: Array) -> int:
  found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
  inner = [first.dims[int(i)] for i in found[1].split(",") if i] if found else []
  return 2 * math.prod(line.arrays[0].dims) * math.prod(inner)


def _kernel(line: Instruction, operands: list[Array]) -> Counter[str]:
  """Operations of a call to a library or of a kernel that says how many it has."""
  if found := re.search(r'"flops":"?(\d+)', line.rest):
    return Counter({"bf16": int(found[1])})
  found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', line.rest)
  if not found or not operands:
    return Counter()
  inner = [operands[0].dims[int(i)] for i in re.findall(r"\d+", found[1])]
  count = 2 * math.prod(line.arrays[0].dims) * math.prod(inner)
  return Counter({_kind(*operands[:2]): count})


def _convolution(line: Instruction, first: Array, second: Array) -> int:
  """Operations of a convolution; TPUs write every dot as one, batch dims as dilated windows.

  Only positions of the window that meet an element count, not padding and not the holes between
  dilated ones.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
  if labels is None:
    return 0
  left, right, out = labels.groups()
  result = line.arrays[0].dims
  total = 2 * result[out.index("b")] * result[out.index("f")] * second.dims[right.index("i")]
  spatial = len(out) - 2
  window = re.search(r"window=\{([^}]*)\}", line.rest)
  said = dict(re.findall(r"(\w+)=([\d_x\-]+)", window[1])) if window else {}

  def of(name: str, default: str) -> list[str]:
    return said.get(name, "x".join([default] * spatial)).split("x")

  for d in range(spatial):
    low = int(of("pad", "0_0")[d].split("_")[0])
    total *= _met(
      (first.dims[left.index(str(d))], second.dims[right.index(str(d))], result[out.index(str(d))]),
      (int(of("stride", "1")[d]), low),
      (int(of("lhs_dilate", "1")[d]), int(of("rhs_dilate", "1")[d])),
    )
  return total


@functools.cache
def _met(sizes: tuple[int, int, int], step: tuple[int, int], dilate: tuple[int, int]) -> int:
  """Pairs (position of the output, of the window) that meet an element of the input."""
  length, window, out = sizes
  stride, low = step
  spread = (length - 1) * dilate[0] + 1
  met = 0
  for o in range(out):
    for k in range(window):
      at = o * stride + k * dilate[1] - low
      met += 0 <= at < spread and at % dilate[0] == 0
  return met
