"""What is read of compiled texts: a real one of two TPU slices, and ones compiled here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from blip3o_jax import chips
from blip3o_jax.plan import program
from blip3o_jax.plan import wires

# A scan of 4 layers silu(x @ w), w bf16[512, 512], x bf16[16 a chip, 64, 512], its gradient and an
# update, over (replica = slice, fsdp = 4) of v5e:2x2 twice, by libtpu 0.0.42.1. Left out: metadata
# and, of backend_config, all but the cycles and whether a fusion carries a gather along.
TEXT = (Path(__file__).parents[2] / "data" / "two_slices.hlo.txt").read_text()
LAYERS, TOKENS, DIM = 4, 16 * 64, 512


class Device:
  """What `Wires` asks of a device."""

  device_kind = "TPU v5 lite"

  def __init__(self, number: int, coords: tuple[int, ...], slice_index: int):
    self.id, self.coords, self.slice_index = number, coords, slice_index


def slices(shape: tuple[int, int], count: int) -> list[Device]:
  places = [(x, y, 0) for y in range(shape[1]) for x in range(shape[0])]
  return [Device(i, at, s) for s in range(count) for i, at in enumerate(places)]


@pytest.fixture(scope="module")
def read() -> program.Program:
  return program.Program(TEXT)


def test_operations_of_a_scan_and_its_gradient(read):
  """Forward and two products backward; XLA takes one round of the scan out of each loop or not."""
  assert read.operations() == {"bf16": 3 * 2 * TOKENS * DIM * DIM * LAYERS}
  rounds = [read.trips(line, home) for home, line, _ in read.walk() if line.op == "while"]
  assert len(rounds) == 2
  assert all(LAYERS - 1 <= n <= LAYERS for n in rounds)


def test_cycles_count_loops(read):
  once = sum(line.cycles for c in read.computations.values() for line in c.lines)
  assert once < read.cycles < LAYERS * once


def test_what_crosses_slices_is_sent_and_received(read):
  moved = wires.totals(read)
  gradient = LAYERS * DIM * DIM * 2
  # Each of 4 chips sends its quarter of the sum over its slice.
  assert moved["send:bf16"] == moved["recv:bf16"] == {"count": LAYERS, "bytes": gradient // 4}
  assert moved["all-reduce:bf16"]["bytes"] >= gradient // 4
  assert moved["all-gather:bf16"]["bytes"] >= gradient  # forward, once or twice
  assert "all-gather:f32" not in moved


def test_time(read):
  """A transfer beside a fusion is hidden; nothing takes longer than all of it one by one."""
  both = wires.Wires(chips.CHIPS["v5e"], slices((2, 2), 2))
  slow = wires.timeline(read, both, 1e-6)
  assert slow.compute == pytest.approx(read.cycles * 1e-6)
  fast = wires.timeline(read, both, 0.0)
  assert fast.wires == slow.wires > 0
  assert fast.network == pytest.approx(LAYERS * DIM * DIM * 2 / 4 / 3.125e9, rel=0.01)
  assert 0 < slow.exposed < fast.exposed <= fast.wires + fast.network
  # Between the slices alone nothing changes what is sent within one.
  thin = wires.Wires(chips.CHIPS["v5e"], slices((2, 2), 1))
  assert wires.timeline(read, thin, 0.0).network == 0


@pytest.mark.parametrize(
  ("text", "members"),
  [
    ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
    ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x", (0, 2, 4, 6)),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, x", (0, 1)),
    ("replica_groups=mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) {'b'}, x", (0, 1)),
    ("replica_groups=mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) {'c'}, x", (0, 2, 4)),
    ("replica_groups=mesh['a'=2,'b'=3], device_ids=([6]) {'b'}, x", (0, 1, 2)),
    ("replica_groups={}, x", ()),
  ],
)
def test_groups(text, members):
  assert wires.group(text) == members


def test_rates_follow_the_axes_of_the_slice():
  chip = chips.CHIPS["v5p"]
  places = [(x, y, z) for z in range(4) for y in range(4) for x in range(2)]
  at = wires.Wires(chip, [Device(i, p, 0) for i, p in enumerate(places)])
  row, line = (0, 1), tuple(range(0, 8, 2))
  assert at.rate(row) == chip.link  # two chips, one wire
  assert at.rate(line) == 2 * chip.link  # a closed ring of four
  assert at.rate(()) == 5 * chip.link
  whole = wires.Transfer("all-reduce", {"bf16": 3200}, ())
  assert whole.sent(32) == 2 * 3200 * 31 / 32
  assert wires.Transfer("reduce-scatter", {"bf16": 100}, line).sent(32) == 300


LOOP = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %go = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), PAIRS
  %work = f32[8]{0} fusion(%x), kind=kLoop, calls=%inner, BACKEND
  %come = f32[8]{0} collective-permute-done(%go)
  ROOT %out = (s32[], f32[8]{0}) tuple(%next, %come)
}

%inner (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %b = f32[8]{0} negate(%a)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant(11)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (y: f32[8]) -> (s32[], f32[8]) {
  %y = f32[8]{0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], f32[8]{0}) tuple(%one, %y)
  ROOT %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(("cycles", "hidden"), [(0, 0.0), (1, 1e-10), (1000, 32 / 50e9)])
def test_a_pair_hides_behind_what_stands_between(cycles, hidden):
  """From 1 below 11 by 2: five rounds; 32 bytes over one wire of 50 GB/s."""
  read = program.Program(
    LOOP.replace("PAIRS", "source_target_pairs={{0,1},{1,0}}").replace(
      "BACKEND", f'backend_config={{"estimated_cycles":"{cycles}"}}'
    )
  )
  both = wires.Wires(chips.CHIPS["v5e"], slices((2, 1), 1))
  time = wires.timeline(read, both, 1e-10)
  assert read.cycles == 5 * cycles
  assert wires.totals(read) == {"collective-permute:f32": {"count": 5, "bytes": 5 * 32}}
  assert time.wires == pytest.approx(5 * 32 / 50e9)
  assert time.exposed == pytest.approx(5 * (32 / 50e9 - hidden), abs=1e-15)


def test_calls_to_the_cores_that_move_data_are_transfers():
  """The compiler knows no cycles of theirs and writes 2^63 - 1; they run beside the others."""
  pairs = "source_target_pairs={{0,1},{1,0}}"
  text = LOOP.replace("collective-permute-done(%go)", "call-done(%go)").replace(
    "collective-permute-start(%x), PAIRS",
    'call-start(%x), async_execution_thread="sparsecore", to_apply=%moved',
  )
  text = text.replace("BACKEND", 'backend_config={"estimated_cycles":"2"}').replace(
    "%inner (a",
    "%moved (m: f32[8]) -> f32[8] {\n  %m = f32[8]{0} parameter(0)\n"
    f"  ROOT %n = f32[8]{{0}} collective-permute(%m), {pairs}, "
    'backend_config={"estimated_cycles":"9223372036854775807"}\n}\n\n%inner (a',
  )
  read = program.Program(text)
  both = wires.Wires(chips.CHIPS["v5e"], slices((2, 1), 1))
  time = wires.timeline(read, both, 1e-10)
  assert read.cycles == 5 * 2
  assert wires.totals(read) == {"collective-permute:f32": {"count": 5, "bytes": 5 * 32}}
  assert time.exposed == pytest.approx(5 * (32 / 50e9 - 2e-10), abs=1e-15)
  line = program.Program(LOOP.replace("BACKEND", '"estimated_cycles":"9223372036854775807"'))
  assert line.cycles == 0


STACK = """HloModule m, is_scheduled=true

%tiles (c: f32[9,64]) -> f32[9,64] {
  %c = f32[9,64]{1,0} parameter(0)
  ROOT %d = f32[9,64]{1,0} copy(%c)
}

%renamed (e: f32[64]) -> f32[64] {
  %e = f32[64]{0} parameter(0)
  ROOT %f = f32[64]{0} bitcast(%e)
}

%beside (w: f32[9,64], i: s32[], x: f32[64], part: f32[16], whole: f32[32]) -> (f32[64], f32[32]) {
  %w = f32[9,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %same = f32[9,64]{1,0} fusion(%w), output_to_operand_aliasing={{}: (0, {})}, calls=%tiles
  %row = f32[1,64]{1,0} dynamic-slice(%same, %i, %zero), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%row)
  %x = f32[64]{0} parameter(2)
  %again = f32[64]{0} fusion(%x), kind=kLoop, calls=%renamed
  %y = f32[64]{0} add(%flat, %again)
  %part = f32[16]{0} parameter(3)
  %whole = f32[32]{0} parameter(4)
  %gather = f32[32]{0} all-gather(%part), channel_id=1, CONFIG
  ROOT %out = (f32[64]{0}, f32[32]{0}, f32[32]{0}) tuple(%y, %whole, %gather)
}

ENTRY %main (w: f32[9,64], i: s32[], x: f32[64], part: f32[16], whole: f32[32]) -> f32[64] {
  %w = f32[9,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[64]{0} parameter(2)
  %part = f32[16]{0} parameter(3)
  %whole = f32[32]{0} parameter(4)
  %all = (f32[64]{0}, f32[32]{0}, f32[32]{0}) fusion(%w, %i, %x, %part, %whole), calls=%beside
  ROOT %y = f32[64]{0} get-tuple-element(%all), index=0
}
"""


@pytest.mark.parametrize(
  ("config", "more"),
  [('"async_collective_fusion_config":{}', 0), ("dimensions={0}", 16 + 32 + 32 + 32)],
)
def test_memory_is_what_a_fusion_reads_itself(config, more):
  """A row of a stack, also under other tiles; not the transfer that runs beside it."""
  read = program.Program(STACK.replace("CONFIG", config))
  assert read.memory_bytes() == 4 * (64 + 1 + 64 + 64 + more)


def test_operations_of_programs_compiled_here():
  def loss(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

  w, x = jnp.zeros((5, 16, 16)), jnp.zeros((24, 16))
  text = jax.jit(jax.value_and_grad(loss)).lower(w, x).compile().as_text()
  assert program.Program(text).operations() == {"bf16": 5 * 3 * 2 * 24 * 16 * 16}

  def convolve(image, kernel):
    return jax.lax.conv_general_dilated(
      image, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  image, kernel = jnp.zeros((2, 9, 9, 3)), jnp.zeros((3, 3, 3, 8))
  done = jax.jit(convolve).lower(image, kernel).compile()
  # Of 5 windows of 3 in a row the outer two meet the padding once: 13 places and not 15.
  assert program.Program(done.as_text()).operations() == {"bf16": 2 * 2 * 13 * 13 * 3 * 8}


@pytest.mark.parametrize(
  ("line", "count"),
  [
    # 16 products [64, 8] x [8, 32] as a TPU writes them: windows of 16 over 16 with holes.
    (
      "%r = bf16[16,64,32]{2,1,0} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, "
      "dim_labels=0bf_0io->0bf",
      2 * 16 * 64 * 8 * 32,
    ),
    ("%r = s32[64,32]{1,0} convolution(%c, %d), dim_labels=bf_io->bf", 2 * 64 * 8 * 32),
  ],
)
def test_products_in_a_tpus_words(line, count):
  text = f"""HloModule m

ENTRY %main (a: bf16[16,64,8]) -> bf16[16,64,32] {{
  %a = bf16[16,64,8]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %b = bf16[16,8,32]{{2,1,0:T(8,128)(2,1)}} parameter(1)
  %c = s8[64,8]{{1,0}} parameter(2)
  %d = s8[8,32]{{1,0}} parameter(3)
  ROOT {line}
}}
"""
  kind = "int8" if "%c" in line else "bf16"
  assert program.Program(text).operations() == {kind: count}


def test_what_follows_a_kernel_whose_metadata_has_lines_of_its_own():
  """As a Pallas kernel's are printed, its own operations in the last of them."""
  text = """HloModule m

ENTRY %main (a: bf16[16,8]) -> bf16[16,4] {
  %a = bf16[16,8]{1,0} parameter(0)
  %b = bf16[8,4]{1,0} parameter(1)
  %k = bf16[16,8]{1,0} custom-call(%a), custom_call_target="x", frontend_attributes={metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, backend_config={"flops":"7"}
  ROOT %r = bf16[16,4]{1,0} dot(%k, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
  assert program.Program(text).operations() == {"bf16": 2 * 16 * 4 * 8 + 7}


def test_memory_counts_slices_and_not_what_is_on_the_chip():
  text = """HloModule m

%take (p: bf16[10,100], i: s32[]) -> bf16[1,100] {
  %p = bf16[10,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = bf16[1,100]{1,0:S(1)} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,100}
}

ENTRY %main (a: bf16[10,100], i: s32[]) -> bf16[1,100] {
  %a = bf16[10,100]{1,0} parameter(0)
  %i = s32[]{:S(1)} parameter(1)
  %f = bf16[1,100]{1,0:S(1)} fusion(%a, %i), kind=kLoop, calls=%take
  ROOT %n = bf16[1,100]{1,0} negate(%f)
}
"""
  assert program.Program(text).memory_bytes() == 200 + 200


def test_of_what_lies_on_the_host_the_slice_counts():
  host, row = "f32[9,64]{1,0:T(8,128)S(5)}", "f32[1,64]{1,0:T(8,128)}"
  text = f"""HloModule m

ENTRY %main (h: f32[9,64], i: s32[]) -> f32[9,64] {{
  %h = {host} parameter(0)
  %i = s32[] parameter(1)
  %take = (({host}, s32[]{{:T(128)}}), {row}, u32[]{{:S(2)}}) dynamic-slice-start(%h, %i)
  %row = {row} dynamic-slice-done(%take)
  %twice = {row} add(%row, %row)
  %put = (({host}, {row}, s32[]), {host}, u32[]) dynamic-update-slice-start(%h, %twice, %i)
  ROOT %done = {host} dynamic-update-slice-done(%put)
}}
"""
  assert program.Program(text).memory_bytes() == 256 * (1 + 3 + 1)


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no entry"):
    program.Program("HloModule m\n")
