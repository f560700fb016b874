"""The engine of the tables: a round trip, and every fault that a checkpoint can have."""

import jax
import numpy as np
import pytest
import tables

from blip3o_jax.weights import table

ROWS = [
  table.row("embed.weight", "embed/embedding"),
  *table.linear("h.{}.qkv", "layers/q", "layers/k", "layers/v"),
  *table.norm("h.{}.ln", "layers/norm", bias=False),
  *table.conv("patch", "patch"),
]
PARAMS = {
  "embed/embedding": (7, 4),
  "layers/q/kernel": (2, 4, 4),
  "layers/k/kernel": (2, 4, 4),
  "layers/v/kernel": (2, 4, 4),
  "layers/q/bias": (2, 4),
  "layers/k/bias": (2, 4),
  "layers/v/bias": (2, 4),
  "layers/norm/scale": (2, 4),
  "patch/kernel": (3, 2, 1, 4),
  "patch/bias": (4,),
}
TENSORS = {
  "embed.weight": (7, 4),
  "h.0.qkv.weight": (12, 4),
  "h.0.qkv.bias": (12,),
  "h.0.ln.weight": (4,),
  "h.1.qkv.weight": (12, 4),
  "h.1.qkv.bias": (12,),
  "h.1.ln.weight": (4,),
  "patch.weight": (4, 1, 3, 2),
  "patch.bias": (4,),
}


def draw():
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in TENSORS.items()}


def abstract():
  return {p: jax.ShapeDtypeStruct(s, np.float32) for p, s in PARAMS.items()}


def faults(tensors=TENSORS, params=PARAMS, rows=ROWS, **options):
  with pytest.raises(table.WeightsError) as error:
    table.plan(rows, tensors, params, **options)
  return error.value.faults


def changed(**changes):
  """TENSORS with `h_1_qkv_bias=shape` style changes; None takes a tensor away."""
  out = TENSORS | {name.replace("__", "."): shape for name, shape in changes.items()}
  return {name: shape for name, shape in out.items() if shape is not None}


def test_a_good_checkpoint_is_planned_in_full():
  assert set(table.plan(ROWS, TENSORS, PARAMS)) == set(PARAMS)


def test_load_puts_each_value_where_it_belongs():
  tensors = draw()
  plan = table.plan(ROWS, TENSORS, PARAMS)
  loaded = tables.filled(plan, lambda name, index: tensors[name][index], abstract())
  np.testing.assert_array_equal(loaded["embed/embedding"], tensors["embed.weight"])
  fused = tensors["h.1.qkv.weight"]
  for part, name in enumerate("qkv"):
    kernel = fused[4 * part : 4 * part + 4].T
    np.testing.assert_array_equal(loaded[f"layers/{name}/kernel"][1], kernel)
  np.testing.assert_array_equal(loaded["patch/kernel"][2, 1], tensors["patch.weight"][:, :, 2, 1].T)


def test_a_round_trip_is_exact():
  tensors = draw()
  plan = table.plan(ROWS, TENSORS, PARAMS)
  loaded = tables.filled(plan, lambda name, index: tensors[name][index], abstract())
  exported = dict(table.export(ROWS, loaded))
  assert set(exported) == set(tensors)
  for name, value in tensors.items():
    np.testing.assert_array_equal(exported[name], value)


def test_parts_of_a_fused_tensor_have_their_own_sizes():
  rows = table.linear("h.{}.in", "layers/q", "layers/up")
  params = {"layers/q/kernel": (2, 4, 3), "layers/q/bias": (2, 3)}
  params |= {"layers/up/kernel": (2, 4, 5), "layers/up/bias": (2, 5)}
  rng = np.random.default_rng(0)
  shapes = {"weight": (8, 4), "bias": (8,)}
  tensors = {f"h.{i}.in.{n}": rng.normal(size=s) for i in range(2) for n, s in shapes.items()}
  plan = table.plan(rows, {n: v.shape for n, v in tensors.items()}, params)
  assert (plan["layers/up/bias"].start, plan["layers/up/bias"].rows) == (3, 5)
  read = {
    path: table.read_shard(
      plan[path], lambda name, index: tensors[name][index], (slice(None),) * len(shape), shape
    )
    for path, shape in params.items()
  }
  np.testing.assert_array_equal(read["layers/up/kernel"][1], tensors["h.1.in.weight"][3:].T)
  for name, value in table.export(rows, read):
    np.testing.assert_array_equal(value, tensors.pop(name))
  assert not tensors
  lines = faults({"h.0.in.weight": (9, 4)}, params, rows)
  assert "shape of h.0.in.weight: expected (8, 4) for layers/up/kernel, found (9, 4)" in lines


def test_a_shard_reads_only_its_own_bytes():
  tensors, seen = draw(), []

  def read(name, index):
    seen.append((name, index))
    return tensors[name][index]

  source = table.plan(ROWS, TENSORS, PARAMS)["layers/k/kernel"]
  index = (slice(1, 2), slice(0, 2), slice(2, 4))
  part = table.read_shard(source, read, index, PARAMS["layers/k/kernel"])
  assert seen == [("h.1.qkv.weight", (slice(6, 8), slice(0, 2)))]
  np.testing.assert_array_equal(part[0], tensors["h.1.qkv.weight"][6:8, 0:2].T)


def test_prefixes_go_on_both_sides():
  (found,) = table.prefixed(table.norm("ln", "norm", bias=False), "model.", "denoiser/")
  assert found == table.row("model.ln.weight", "denoiser/norm/scale")


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    (dict(extra__weight=(1,)), "unexpected extra.weight"),
    (dict(h__0__qkv__wieght=(1,)), "unexpected h.0.qkv.wieght (nearest known: h.{}.qkv.weight)"),
    (dict(embed__weight=None), "missing embed.weight, needed by embed/embedding"),
    (dict(h__1__ln__weight=None), "missing h.1.ln.weight, needed by layers/norm/scale"),
    (dict(h__2__ln__weight=(4,)), "unexpected h.2.ln.weight: the model has 2 layers"),
    (
      dict(h__1__qkv__bias=(9,)),
      "shape of h.1.qkv.bias: expected (12,) for layers/q/bias, found (9,)",
    ),
    (
      dict(patch__weight=(4, 1, 2, 3)),
      "shape of patch.weight: expected (4, 1, 3, 2) for patch/kernel, found (4, 1, 2, 3)",
    ),
  ],
)
def test_a_fault_of_the_checkpoint_is_named(changes, expected):
  lines = faults(changed(**changes))
  assert len([line for line in lines if line.startswith(expected)]) == 1


def test_a_gap_between_layers_is_named():
  moved = changed(h__1__ln__weight=None, h__5__ln__weight=(4,))
  assert faults(moved)[:2] == [
    "missing h.1.ln.weight, needed by layers/norm/scale (nearest found: h.5.ln.weight)",
    "unexpected h.5.ln.weight: the model has 2 layers",
  ]


def test_a_missing_name_is_shown_its_nearest():
  renamed = changed(embed__weight=None, embd__weight=(7, 4))
  assert any("nearest found: embd.weight" in line for line in faults(renamed))


def test_faults_of_the_table_are_named():
  params = {p: s for p, s in PARAMS.items() if p != "patch/bias"} | {"slots": (3, 4)}
  assert faults(params=params) == [
    "table names a parameter that the model lacks: patch/bias (from patch.bias)",
    "no tensor fills slots",
  ]
  twice = [*ROWS, table.row("embed.weight", "patch/bias")]
  assert "patch/bias: filled twice, second by embed.weight" in faults(rows=twice)


def test_all_faults_come_in_one_error():
  bad = changed(extra__weight=(1,), embed__weight=None, h__1__qkv__bias=(9,), h__3__ln__weight=(4,))
  lines = faults(bad, where="model.safetensors")
  words = ("unexpected extra", "missing embed", "shape of h.1.qkv.bias", "unexpected h.3")
  assert all(any(line.startswith(word) for line in lines) for word in words)
  assert len(lines) == len(set(lines))
  text = str(table.WeightsError("model.safetensors", lines))
  assert text.startswith(f"model.safetensors: {len(lines)} fault(s)\n  ")
  assert all(line in text for line in lines)


def test_a_long_list_is_cut_but_counted():
  text = str(table.WeightsError("x", [f"unexpected {i}" for i in range(70)]))
  assert text.startswith("x: 70 fault(s)")
  assert text.endswith("... and 10 more")


def test_only_what_is_named_is_ignored():
  extra = TENSORS | {"h.0.rotary.inv_freq": (2,)}
  table.plan(ROWS, extra, PARAMS, ignore=[r"h\.\d+\.rotary\.inv_freq"])
  assert faults(extra, ignore=["rotary"]) == ["unexpected h.0.rotary.inv_freq"]


def test_export_wants_every_parameter():
  params = {p: np.zeros(s, np.float32) for p, s in PARAMS.items() if p != "patch/bias"}
  with pytest.raises(table.WeightsError) as error:
    list(table.export(ROWS, params | {"slots": np.zeros(1)}))
  assert error.value.faults == ["no row exports slots", "absent parameter patch/bias"]
