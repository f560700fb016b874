"""Attention: both kernels against numpy, and what cannot run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import attention as module
from blip3o_jax import sharding
from blip3o_jax.attention import attention


def reference(q, k, v, segments=None, causal=False, offset=None, scale=None):
  """Loops over batch, head and query in float64; a query that sees nothing is left out."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  (b, t, n, h), s = q.shape, k.shape[1]
  group, scale = n // k.shape[2], h**-0.5 if scale is None else scale
  start = s - t if offset is None else offset
  out = np.zeros_like(q)
  for i, j, head in np.ndindex(b, t, n):
    seen = np.ones(s, bool) if segments is None else segments[0][i, j] == segments[1][i]
    if causal:
      seen = seen & (np.arange(s) <= start + j)
    logits = k[i, seen, head // group] @ q[i, j, head] * scale
    weights = np.exp(logits - logits.max())
    out[i, j, head] = weights / weights.sum() @ v[i, seen, head // group]
  return out


def draw(t, s, n, k, h=8, b=2, dtype=np.float32):
  rng = np.random.default_rng(1)
  shapes = ((b, t, n, h), (b, s, k, h), (b, s, k, h))
  return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def ids(*rows):
  return jnp.asarray(rows, jnp.int32)


SELF = ids([0, 0, 1, 1, 1, 2], [1, 1, 1, 1, 3, 3])
CROSS = (ids([1, 1, 1, 1], [1, 1, 2, 2]), ids([0, 0, 1, 1, 1, 1], [1, 2, 2, 2, 1, 0]))


@pytest.mark.parametrize(
  ("t", "s", "heads", "kv_heads", "options"),
  [
    (6, 6, 2, 2, {}),
    (6, 6, 6, 2, dict(scale=0.3)),
    (6, 6, 16, 2, dict(segments=SELF, causal=True)),
    (6, 6, 4, 1, dict(segments=SELF)),
    (6, 6, 4, 2, dict(segments=SELF, causal=True)),
    (4, 6, 4, 2, dict(segments=CROSS)),
    (4, 6, 4, 4, dict(causal=True)),
    (4, 6, 4, 2, dict(causal=True, offset=1)),
  ],
)
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(("impl", "h"), [("xla", 8), ("columns", 8), ("columns", 64)])
def test_it_equals_numpy(t, s, heads, kv_heads, options, jitted, impl, h):
  """Heads of 64 go in pairs through "columns" where each has keys of its own."""
  q, k, v = draw(t, s, heads, kv_heads, h)

  def run(q, k, v):
    return attention(q, k, v, impl=impl, **options)

  found = (jax.jit(run) if jitted else run)(q, k, v)
  segments = options.get("segments")
  pair = segments if segments is None or isinstance(segments, tuple) else (segments, segments)
  expected = reference(q, k, v, **(options | dict(segments=pair)))
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_traced_offset_moves_the_diagonal():
  q, k, v = draw(2, 6, 2, 1)
  run = jax.jit(lambda offset: attention(q, k, v, causal=True, offset=offset, impl="xla"))
  for offset in (0, 2, 4):
    expected = reference(q, k, v, causal=True, offset=offset)
    np.testing.assert_allclose(run(jnp.int32(offset)), expected, atol=2e-6)


@pytest.mark.parametrize(("heads", "kv_heads", "h"), [(4, 4, 64), (3, 3, 64), (6, 2, 8), (8, 1, 8)])
def test_columns_have_the_gradient_of_xla(heads, kv_heads, h):
  q, k, v = draw(6, 6, heads, kv_heads, h)

  def loss(impl):
    return lambda *qkv: jnp.sum(jnp.sin(attention(*qkv, segments=SELF, causal=True, impl=impl)))

  found, expected = (jax.grad(loss(impl), (0, 1, 2))(q, k, v) for impl in ("columns", "xla"))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_heads_of_64_go_in_pairs_that_the_mesh_does_not_split():
  """By the matmuls of the traced program: a pair has 128 channels, a head alone 64."""
  q = jax.ShapeDtypeStruct((2, 6, 6, 64), jnp.float32)

  def width(ways):
    sizes = dict.fromkeys(sharding.MESH_AXES, 1) | {"tensor": ways}
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with jax.sharding.use_abstract_mesh(mesh):
      out = jax.make_jaxpr(lambda q: attention(q, q, q, impl="columns"))(q)
    (first, _) = [line for line in out.eqns if line.primitive.name == "dot_general"]
    return first.invars[0].aval.shape[-1]

  assert (width(1), width(3), width(2)) == (128, 128, 64)


def test_what_is_not_seen_has_no_weight():
  q, k, v = draw(6, 6, 2, 2)
  other = jnp.where((SELF == 1)[..., None, None], v, 1e4)
  a, b = (attention(q, k, x, segments=SELF) for x in (v, other))
  inside = np.asarray(SELF == 1)
  np.testing.assert_array_equal(np.asarray(a)[inside], np.asarray(b)[inside])


@pytest.mark.parametrize("impl", ["xla", "columns"])
def test_softmax_is_float32_in_bfloat16(impl):
  q, k, v = draw(64, 64, 2, 2, dtype=jnp.bfloat16)
  found = attention(q, k, v, impl=impl)
  assert found.dtype == jnp.bfloat16
  # One rounding of the weights and one of the result: 2**-8 relative each, of values below 1.
  np.testing.assert_allclose(np.float32(found), reference(q, k, v), atol=2**-7)


@pytest.mark.parametrize("causal", [False, True])
def test_splash_equals_xla(causal):
  """In interpret mode, grouped heads, packed segments; T < S as in decoding a suffix."""
  t, s = 128, 256
  q, k, v = draw(t, s, 4, 2, h=16, b=1)
  key_ids = jnp.asarray([np.repeat([0, 1, 2], [10, 150, 96])], jnp.int32)
  options = dict(segments=(key_ids[:, s - t :], key_ids), causal=causal)
  a = attention(q, k, v, impl="splash", **options)
  b = attention(q, k, v, impl="xla", **options)
  np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.slow
def test_splash_has_the_gradient_of_xla():
  q, k, v = draw(128, 128, 2, 1, h=16, b=1)

  def loss(impl):
    return lambda *x: (attention(*x, causal=True, impl=impl) ** 2).sum()

  a, b = (jax.grad(loss(impl), (0, 1, 2))(q, k, v) for impl in ("splash", "xla"))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


@pytest.mark.parametrize(
  ("t", "s", "options", "message"),
  [
    (64, 128, {}, "lengths 64 and 128 are not multiples of 128"),
    (128, 256, dict(causal=True, offset=0), "offset 0 is not S - T"),
    (128, 128, dict(causal=True, offset=jnp.int32(0)), "a traced offset"),
  ],
)
def test_a_named_kernel_that_cannot_run_says_why(t, s, options, message):
  q, k, v = draw(t, s, 2, 2, b=1)
  with pytest.raises(ValueError, match=f"'splash' cannot run: {message}"):
    attention(q, k, v, impl="splash", **options)


def on_gpu(monkeypatch, capability):
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  monkeypatch.setattr(module, "_cuda_capability", lambda: capability)


@pytest.mark.parametrize(
  ("capability", "t", "dtype", "head_dim", "options", "message"),
  [
    ((), 128, jnp.bfloat16, 64, {}, "this process has no CUDA device"),
    ((7, 5), 128, jnp.bfloat16, 64, {}, "compute capability 7.5, expected 8.0 or more"),
    ((8, 0), 128, jnp.float32, 64, {}, "dtypes float32 and float32, expected bfloat16 or float16"),
    ((8, 0), 128, jnp.bfloat16, 256, {}, "head dim 256, expected a multiple of 8 up to 128"),
    ((9, 0), 128, jnp.bfloat16, 264, {}, "head dim 264, expected a multiple of 8 up to 256"),
    ((9, 0), 128, jnp.bfloat16, 12, {}, "head dim 12, expected a multiple of 8 up to 256"),
    ((9, 0), 127, jnp.bfloat16, 64, dict(causal=True, offset=1), "lengths 127 and 127 with a mask"),
  ],
)
def test_cudnn_that_does_not_fit_says_why(
  capability, t, dtype, head_dim, options, message, monkeypatch
):
  on_gpu(monkeypatch, capability)
  q, k, v = draw(t, t, 2, 2, h=head_dim, b=1, dtype=dtype)
  with pytest.raises(ValueError, match=f"'cudnn' cannot run: {message}"):
    attention(q, k, v, impl="cudnn", **options)


def test_a_kernel_of_another_platform_is_refused(monkeypatch):
  q, k, v = draw(128, 128, 2, 2, dtype=jnp.bfloat16)
  with pytest.raises(ValueError, match="'cudnn' cannot run: the platform is 'cpu', not 'gpu'"):
    attention(q, k, v, impl="cudnn")
  on_gpu(monkeypatch, (9, 0))
  with pytest.raises(ValueError, match="'splash' cannot run: the platform is 'gpu', not 'tpu'"):
    attention(q, k, v, impl="splash")


def test_an_unknown_kernel_is_refused():
  q, k, v = draw(8, 8, 2, 2)
  known = "auto, xla, columns, cudnn or splash"
  with pytest.raises(ValueError, match=f"impl 'flash': expected {known}"):
    attention(q, k, v, impl="flash")


@pytest.mark.parametrize(
  ("options", "inside"),
  [
    (dict(causal=True), True),
    (dict(causal=True, offset=0, segments=jnp.ones((1, 128), jnp.int32)), True),
    (dict(causal=True, offset=2), False),
    ({}, False),
  ],
)
def test_cudnn_gets_the_diagonal_by_name_and_the_rest_as_a_mask(options, inside, monkeypatch):
  """What JAX would be asked on a GPU, computed by XLA: equal to numpy."""
  on_gpu(monkeypatch, (9, 0))
  asked, real = {}, jax.nn.dot_product_attention

  def record(*args, implementation, **kwargs):
    asked.update(kwargs, implementation=implementation)
    return real(*args, implementation="xla", **kwargs)

  monkeypatch.setattr(jax.nn, "dot_product_attention", record)
  q, k, v = draw(128, 128, 2, 1, b=1, dtype=jnp.bfloat16)
  found = attention(q, k, v, impl="cudnn", **options)
  assert (asked["implementation"], asked["is_causal"]) == ("cudnn", inside)
  segments = options.get("segments")
  pair = None if segments is None else (segments, segments)
  expected = reference(q, k, v, **(options | dict(segments=pair)))
  np.testing.assert_allclose(np.float32(found), expected, atol=2**-6)


def test_splash_rows_that_the_mesh_does_not_divide():
  mesh = jax.make_mesh((1, 1, 1), ("replica", "fsdp", "tensor")).abstract_mesh
  wide = jax.sharding.AbstractMesh(
    (1, 4, 2), mesh.axis_names, axis_types=(jax.sharding.AxisType.Auto,) * 3
  )
  q, k, v = draw(128, 128, 4, 2, b=2)
  odd = draw(128, 128, 3, 3, b=4)
  with jax.sharding.use_abstract_mesh(wide):
    with pytest.raises(ValueError, match="batch 2 does not divide over the mesh's 4"):
      attention(q, k, v, impl="splash")
    with pytest.raises(ValueError, match="heads 3 does not divide over the mesh's 2"):
      attention(*odd, impl="splash")


def test_heads_that_do_not_divide():
  q, k, v = draw(4, 4, 3, 2)
  with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 kv heads"):
    attention(q, k, v)


@pytest.mark.parametrize(
  ("platform", "t", "dtype", "head_dim", "causal", "expected"),
  [
    ("cpu", 1024, jnp.bfloat16, 64, False, "xla"),
    ("tpu", 1024, jnp.bfloat16, 64, True, "splash"),
    ("tpu", 64, jnp.bfloat16, 64, False, "columns"),  # the DiT: splash refuses
    ("tpu", 32, jnp.bfloat16, 64, False, "xla"),  # does not fill the lanes
    ("tpu", 512, jnp.bfloat16, 64, False, "columns"),  # splash runs, but does not pay
    ("tpu", 1100, jnp.bfloat16, 64, False, "columns"),
    ("gpu", 64, jnp.bfloat16, 64, False, "xla"),  # the DiT: too short to pay
    ("gpu", 160, jnp.bfloat16, 64, True, "cudnn"),
    ("gpu", 256, jnp.float32, 64, False, "xla"),
    ("gpu", 256, jnp.bfloat16, 264, False, "xla"),
  ],
)
def test_auto_chooses(platform, t, dtype, head_dim, causal, expected, monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  monkeypatch.setattr(module, "_cuda_capability", lambda: (9, 0))
  q = jax.ShapeDtypeStruct((1, t, 2, head_dim), dtype)
  assert module._choose(q, q, None, causal, None) == expected


@pytest.mark.parametrize(("t", "expected"), [(1, "xla"), (16, "columns")])
def test_a_token_at_a_time_does_not_fill_lanes(t, expected, monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: "tpu")
  q, k = (jax.ShapeDtypeStruct((1, n, heads, 128), jnp.bfloat16) for n, heads in ((t, 16), (99, 2)))
  assert module._choose(q, k, None, True, 98) == expected


def test_auto_never_takes_cudnn_where_there_is_no_cuda(monkeypatch):
  on_gpu(monkeypatch, ())
  q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
  assert module._choose(q, q, None, False, None) == "xla"


def test_the_choice_is_logged_once(caplog):
  q, k, v = draw(6, 10, 2, 2)
  module._log_choice.cache_clear()
  with caplog.at_level("INFO", logger="absl"):
    for _ in range(2):
      attention(q, k, v)
  said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("attention:")]
  assert said == ["attention: xla for q (2, 6, 2, 8), k (2, 10, 2, 8)"]
