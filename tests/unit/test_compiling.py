"""Compiler options by device kind: known to the compiler of this jaxlib, and the user's flags win.

Those of TPUs are asked of the TPU compiler, in a process that may load it.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import libtpu_child
import pytest

from blip3o_jax import compiling


def compiled(options):
  return jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile(compiler_options=options)


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "cpu"])
def test_every_option_is_known_to_the_compiler(kind):
  compiled(compiling.options(kind, {}))


def test_the_compiler_refuses_an_unknown_name():
  """Else the test above would say nothing."""
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_gpu_wish'"):
    compiled({"xla_gpu_wish": True})


def test_each_kind_has_its_own():
  gpu, cpu = (compiling.options(kind, {}) for kind in ("NVIDIA H200", "cpu"))
  assert gpu == {"xla_gpu_enable_latency_hiding_scheduler": True}
  assert cpu == compiling.options("TPU v99", {}) == {}
  for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"):
    found = compiling.options(kind, {})
    assert found
    assert not any("gpu" in name for name in found), kind


def test_the_tpu_compiler_takes_those_of_each_generation():
  """It may know each name and refuse them together, as 0.0.50 does the gathers' but for v5e."""
  took = libtpu_child.printed(Path(__file__).with_name("options_worker.py"))
  assert took == {kind: len(compiling.options(kind, {})) for kind in took}
  assert took.keys() == {"TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"}


SPARSE = "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter"


def test_what_the_user_set_is_left_to_the_user():
  environment = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "LIBTPU_INIT_ARGS": f"--{SPARSE}=false --xla_tpu_scoped_vmem_limit_kib=16384",
  }
  before, now = (compiling.options("TPU v5", given) for given in ({}, environment))
  assert set(before) - set(now) == {SPARSE, "xla_tpu_scoped_vmem_limit_kib"}


def test_the_options_in_a_line():
  gpu = compiling.options("NVIDIA H200", {})
  assert compiling.described(gpu) == "xla_gpu_enable_latency_hiding_scheduler=True"
  assert compiling.described({}) == "none"
