"""Options of XLA for a training step, by the kind of device: what hides collectives behind work.

They go to `lowered.compile(compiler_options=...)`, so a plan for devices that are not there takes
the same ones, and no environment variable has to be set before JAX starts. Imports no jax.
docs/performance.md has what each changed in a compiled program.
"""

from collections.abc import Mapping
import os
import re

# bool for GPUs, whose options refuse the text "true"; text for TPUs, whose options take it.
Options = dict[str, bool | str]

# Moves collectives away from their uses. Off by default; NVIDIA's images of JAX set it
# (https://docs.nvidia.com/jax-toolbox/environment-variables). The switches of pipelined
# collectives are left out: JAX 0.12 does not know them, and in 0.10 they do nothing
# (https://github.com/openxla/xla/issues/44228).
_GPU: Options = {"xla_gpu_enable_latency_hiding_scheduler": True}

# Gathers of weights run in the steps of a matmul; the first two do nothing without the third. The
# names are those of MaxText's list of flags
# (https://github.com/AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py). For v5e alone: on
# other chips libtpu 0.0.50 refuses the three together, since results may be wrong.
_GATHERS: Options = {
  "xla_tpu_enable_async_collective_fusion": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
  "xla_enable_async_all_gather": "true",
}

# Gradients are summed by the SparseCore beside the matmuls, as a reduce-scatter; otherwise by an
# all-reduce that keeps a part, padded, and waits. On by default for tpu7x.
_SPARSE_CORE: Options = {
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
}

# Larger windows of the matmuls (16 MiB by default; more than 24 leaves no room for arrays that stay
# on the chip), and loops over the same array made one.
_WINDOWS: Options = {
  "xla_tpu_scoped_vmem_limit_kib": "24576",
  "xla_jf_enable_advanced_multi_output_fusion": "true",
}

_TPU: Mapping[str, Options] = {
  "TPU v5 lite": _GATHERS,
  "TPU v5": _SPARSE_CORE | _WINDOWS,
  "TPU v6 lite": _SPARSE_CORE,
  "TPU7x": _SPARSE_CORE,
}


def options(device_kind: str, environment: Mapping[str, str] | None = None) -> Options:
  """The options for devices of a kind, as JAX names it; none for CPUs and unknown TPUs.

  What XLA_FLAGS or LIBTPU_INIT_ARGS name is left to them, for an option would win.

  Args:
    device_kind: `device.device_kind`, e.g. "TPU v5", "NVIDIA H100 80GB HBM3", "cpu".
    environment: default `os.environ`.
  """
  if device_kind == "cpu":
    return {}
  found = _TPU.get(device_kind, {}) if device_kind.startswith("TPU") else _GPU
  given = os.environ if environment is None else environment
  words = " ".join(given.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
  named = set(re.findall(r"--(\w+)", words))
  return {name: value for name, value in found.items() if name not in named}


def described(chosen: Options) -> str:
  """The options in a line, for the log."""
  return ", ".join(f"{name}={value}" for name, value in chosen.items()) or "none"
