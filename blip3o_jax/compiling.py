"""Options of XLA for a training step, by the kind of device: what hides collectives behind work.

They go to `lowered.compile(compiler_options=...)`, so a plan for devices that are not there takes
the same ones, and no environment variable has to be set before JAX starts. Imports no jax.
"""

from collections.abc import Mapping
import os

from absl import logging

Options = dict[str, bool | str]

# Collectives are moved away from their uses. Off by default; NVIDIA's images of JAX set it
# (https://docs.nvidia.com/jax-toolbox/environment-variables). The switches of pipelined
# collectives are left out: JAX 0.12 does not know them, and in 0.10 they do nothing
# (https://github.com/openxla/xla/issues/44228).
_GPU: Options = {"xla_gpu_enable_latency_hiding_scheduler": True}
