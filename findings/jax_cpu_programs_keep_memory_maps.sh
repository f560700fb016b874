#!/usr/bin/env bash
#
# Every program that JAX compiles for the CPU keeps memory maps of its process, of which Linux allows
# 65,530; an operation on an array of a new length is such a program, and outlives all that used it.
#
# One expects a long process (a test suite, a data service, a sweep over lengths) to be bounded by
# memory. It is bounded by maps first: each array length that `jnp.sin` or `+` meets is compiled by
# itself and takes two, which stay when the result is dropped and collected. Functions under
# `jax.jit` take theirs for each shape, and give them back when the function is collected. What is
# kept is small, so nothing in the process's memory shows it. `vm.max_map_count` is 65,530 by
# default; a process that meets it can map nothing more, whatever memory is free (that is not shown
# here).
#
#                                                 maps for each shape
#   jnp.sin(x), 300 lengths, results dropped              2
#   jit of tanh(x) * 2, 300 lengths                       3
#   the same after the function is collected              0
#   jnp.sin's after jax.clear_caches()                    0
#
# What to do: `jax.clear_caches()` now and then in a process that meets many shapes, or pad to a few.
#
# Seen with jax 0.10.2 (Python 3.11) and jax 0.12.0.1 (Python 3.12), Linux, x86-64. Installs into a
# temporary folder, which it removes.
#   PYTHON, PYTHON312   the interpreters, default python3.11 and python3.12
#   JAX_VERSION         a release to try on python3.12 in place of 0.12.0.1
# Exit status 0: as stated above. "changed: ..." and 1: it no longer is.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/program.py" <<'PY'
import gc
from pathlib import Path
import sys

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = 300


def maps():
  gc.collect()
  return len(Path("/proc/self/maps").read_text().splitlines())


def grown(call, first):
  """Maps for each shape that a call takes of arrays of numpy, whose results are dropped."""
  call(np.zeros(first, np.float32)).block_until_ready()
  before = maps()
  for n in range(first + 1, first + 1 + SHAPES):
    call(np.zeros(n, np.float32)).block_until_ready()
  return (maps() - before) / SHAPES


limit = Path("/proc/sys/vm/max_map_count").read_text().strip()
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, vm.max_map_count here {limit}")
eager = grown(jnp.sin, 100)
function = jax.jit(lambda x: jnp.tanh(x) * 2)
jitted = grown(function, 1000)
before = maps()
del function
collected = jitted - (before - maps()) / SHAPES
before = maps()
jax.clear_caches()
cleared = eager - (before - maps()) / SHAPES
found = {
  "jnp.sin, results dropped": (eager, 2),
  "jit of one function": (jitted, 3),
  "after that function is collected": (collected, 0),
  "jnp.sin's after clear_caches": (cleared, 0),
}
for name, (value, _) in found.items():
  print(f"  {name:34} {value:5.2f} maps a shape")
changed = [name for name, (value, stated) in found.items() if abs(value - stated) > 0.4]
sys.exit(f"changed: {', '.join(changed)}" if changed else 0)
PY

# Each release in an environment of its own; the rest of the pins are the same for both.
try() {
  local python=$1 version=$2
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0 opt_einsum==3.4.0
  JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 "$work/$version/bin/python" "$work/program.py" || status=1
}

status=0
try "${PYTHON:-python3.11}" 0.10.2
python312=${PYTHON312:-python3.12}
if "$python312" --version >/dev/null 2>&1; then
  try "$python312" "${JAX_VERSION:-0.12.0.1}"
else
  echo "not tried: jax ${JAX_VERSION:-0.12.0.1}, for want of a Python 3.12 (PYTHON312=)"
fi
if [ "$status" = 0 ]; then echo "as stated"; fi
exit "$status"
