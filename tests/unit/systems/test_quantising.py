"""Int8 layers of a system: filled from float files and runs, their bytes, their errors."""

import dataclasses
from typing import Any

import checkpoints
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import quantized
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.convert import importer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import quantising
from blip3o_jax.train import checkpoint
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train.run import Train

TINY = checkpoints.TINY
FLOAT = dataclasses.replace(released.read(TINY, "float32")[0], parts=("denoiser",))
KERNEL = "backbone/layers/mlp/up_proj/kernel"
SCALE = "backbone/layers/mlp/up_proj/scale"
TRAINED = ("slots/.*", "denoiser/.*")


def int8(kind: quantized.Quantize = "int8") -> blip3o.Config:
  return dataclasses.replace(FLOAT, backbone=dataclasses.replace(FLOAT.backbone, quantize=kind))


def partition(cfg: blip3o.Config, trainable: tuple[str, ...], **fields: Any) -> Any:
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return train_state.partition(blip3o, cfg, mesh, trainable, **fields)


def flat(tree: Any) -> dict[str, np.ndarray]:
  return {path: np.asarray(value) for path, value in trees.flatten(tree).items()}


def check(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> None:
  """Fails unless `found` is `exact` with seven kernels quantised."""
  kernels = [path for path, value in found.items() if value.dtype == np.int8]
  assert len(kernels) == 7
  for path, value in exact.items():
    if path in kernels:
      values, scale = quantized.quantize(value)
      off = found[path].astype(int) - values
      assert np.abs(off).max() <= 1
      assert np.mean(off != 0) < 1e-3, path  # on a device a division may round elsewhere
      np.testing.assert_array_equal(found[f"{path.removesuffix('kernel')}scale"], scale)
    else:
      np.testing.assert_array_equal(found[path], value)
  assert len(found) == len(exact) + 7


@pytest.mark.parametrize("kind", ["released", "converted"])
def test_float_files_fill_int8_layers(kind, tmp_path):
  directory = TINY
  if kind == "converted":
    directory = tmp_path / "tiny"
    importer.run(TINY, directory, say=lambda _: None)
  exact = flat(loading.load(blip3o, FLOAT, TINY, dtype=None).params)
  check(flat(loading.load(blip3o, int8(), directory, dtype=None).params), exact)
  small = flat(loading.load(blip3o, int8(), directory, dtype="bfloat16").params)
  assert (small[KERNEL].dtype, str(small[SCALE].dtype)) == (np.int8, "bfloat16")
  values, scale = quantized.quantize(exact[KERNEL])
  np.testing.assert_array_equal(small[KERNEL], values)  # of the float32 values, not of bfloat16
  np.testing.assert_array_equal(small[SCALE].astype(np.float32), scale)


class Memory(dict[str, np.ndarray]):
  """Arrays by path, as directories give them."""

  def __init__(self, arrays: dict[str, np.ndarray]):
    super().__init__({path: value.shape for path, value in arrays.items()})
    self.arrays, self.rows = arrays, 0

  def read(self, path: str, index: Any) -> np.ndarray:
    out = self.arrays[path][index]
    self.rows += out.shape[-2]
    return out


@pytest.mark.parametrize("stacked", [True, False])
def test_each_shard_is_a_slice_of_the_whole(stacked):
  """Of the rows and columns of a device: the scale is that of all rows, which are read once."""
  kernel = np.random.default_rng(0).standard_normal((3, 8, 6)).astype(np.float32)
  whole = kernel if stacked else kernel[0]
  arrays = Memory({"a/kernel": whole})
  leaves = {
    "a/kernel": jax.ShapeDtypeStruct(whole.shape, jnp.int8),
    "a/scale": jax.ShapeDtypeStruct((*whole.shape[:-2], 6), jnp.float32),
  }
  reader: Any = quantising.Reader(arrays, leaves)
  values, scale = quantized.quantize(whole)
  front = (slice(None),) * stacked
  for rows in (slice(0, 4), slice(4, 8)):
    for columns in (slice(0, 3), slice(3, 6)):
      found = reader.read("a/kernel", (*front, rows, columns))
      np.testing.assert_array_equal(found, values[..., rows, columns])
      assert found.dtype == np.int8
  assert arrays.rows == 2 * (8 + 4) * len(values) if stacked else 2 * (8 + 4)
  np.testing.assert_array_equal(reader.read("a/scale", (*front, slice(None))), scale)
  np.testing.assert_array_equal(reader.read("a/scale", (*front, slice(3, 6))), scale[..., 3:])
  assert all(path in reader for path in leaves)
  assert "b/kernel" not in reader


def test_a_run_that_trained_its_language_model_fills_them(tmp_path):
  trained = (*TRAINED, "backbone/layers/.*")
  full = dataclasses.replace(FLOAT, prompt_gradient="full")
  train = Train(trainable=trained, init_from=(str(TINY),))
  part = partition(full, trained)
  filled, _ = loading.fill(blip3o, full, loading.resolve([str(TINY)]), part.trained, part.leaves)
  tx = optimizer.make(train.optimizer, 10, {p: part.axes[p] for p in part.trained})
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  abstract = train_state.abstract_state(part, tx, mesh, ema=False)
  params = {path: value * 1.5 + 0.01 for path, value in filled.items()}
  state = train_state.start(abstract, tx, trees.unflatten(params), mesh)
  with checkpoint.Writer(tmp_path, train.checkpoint, {"train": {}, "sources": []}) as writer:
    writer.save(state)
    writer.wait()
  wanted = partition(int8(), TRAINED).leaves
  wanted = {path: leaf for path, leaf in wanted.items() if path.startswith("backbone/layers/")}
  found, left = loading.fill(blip3o, int8(), loading.resolve([str(tmp_path)]), wanted, wanted)
  assert not left
  exact = {path: np.asarray(v) for path, v in params.items() if path.startswith("backbone/")}
  check({path: np.asarray(value) for path, value in found.items()}, exact)
  for path, value in found.items():
    assert (value.shape, value.dtype) == (wanted[path].shape, wanted[path].dtype)
    assert value.sharding == wanted[path].sharding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel_takes_a_byte_an_element(dtype):
  part = partition(int8(), TRAINED, frozen_dtype=dtype)
  kernels = [path for path, leaf in part.frozen.items() if leaf.dtype == jnp.int8]
  assert len(kernels) == 7
  rest = {str(leaf.dtype) for path, leaf in part.frozen.items() if path not in kernels}
  assert rest == {dtype}
  plain = partition(FLOAT, TRAINED, frozen_dtype=dtype)
  assert set(part.frozen) - set(plain.frozen) == {
    f"{k.removesuffix('kernel')}scale" for k in kernels
  }
  assert part.trained == plain.trained


def test_they_cannot_be_trained():
  for pattern, first in ((".*", ".*/kernel"), (SCALE, SCALE), (KERNEL, KERNEL)):
    with pytest.raises(ValueError, match=rf"config\.trainable: {first}.* stored in int8"):
      partition(dataclasses.replace(int8(), prompt_gradient="full"), (pattern,))


@pytest.mark.parametrize("kind", ["int8", "int8_backward"])
def test_the_error_of_the_recorded_tiny_model(kind):
  """Of what the slots read, the loss, and the gradients of slots and denoiser."""
  rng = np.random.default_rng(0)
  batch = {
    "tokens": jnp.asarray(rng.integers(0, 500, (4, 24)), jnp.int32),
    "segments": jnp.asarray(np.arange(24) >= np.array([[0], [3], [9], [14]]), jnp.int32),
    "features": jnp.asarray(
      rng.standard_normal((4, FLOAT.grid, FLOAT.grid, FLOAT.channels)), jnp.float32
    ),
  }

  def run(cfg: blip3o.Config) -> Any:
    found = loading.load(blip3o, cfg, TINY, dtype=None)
    trained, frozen = trees.partition(found.params, trees.matcher(TRAINED))

    @jax.jit
    def step(trained: Any, frozen: Any) -> Any:
      def loss(trained: Any) -> Any:
        module = nnx.merge(found.graphdef, trained, frozen)
        value, _ = module.loss(batch, jax.random.key(0), module.weights(batch))
        return value, module.read(batch["tokens"], batch["segments"])

      return jax.value_and_grad(loss, has_aux=True)(trained)

    return step(trained, frozen)

  (exact, read), grads = run(FLOAT)
  (value, found), ours = run(int8(kind))

  def apart(a: Any, b: Any) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

  slots = ours["slots"]["embedding"].ravel(), grads["slots"]["embedding"].ravel()
  cosine = jnp.dot(*slots) / (jnp.linalg.norm(slots[0]) * jnp.linalg.norm(slots[1]))
  assert 1e-4 < apart(found, read) < 0.03
  assert 0 < abs(value - exact) / exact < 2e-3
  assert cosine > 0.995
