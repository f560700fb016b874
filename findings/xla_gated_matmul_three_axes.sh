#!/usr/bin/env bash
#
# A matmul on a mesh of three axes puts the rows of its result in the wrong places.
#
# One expects a sharding to change where numbers are computed and never which. Here it does change
# them, without an error or a warning. On a mesh of (replica, fsdp, tensor), each of 2, take
#
#   m * (x @ w)    x, m: batch over (replica, fsdp), columns over tensor
#                  w:    rows over tensor, columns over fsdp
#
# which is a gate m, itself the output of a tensor-sharded linear layer, on the second projection of
# an MLP. With row i of x holding the number i, w the identity and m all ones, the rows are
#
#   on one device, and on 1x4x2, 4x1x2 or 4x2x1    0 1 2 3 4 5 6 7
#   on 2x2x2                                       0 1 4 5 2 3 6 7
#
# so with random numbers the error is as large as the result. The product with m is innocent: it only
# makes XLA want the result of the matmul over tensor as well. The compiled program then moves x to
# the device order that suits w, (fsdp, replica), multiplies, and does not move the rows back.
#
# Seen with jax 0.10.2 (Python 3.11) and jax 0.12.0.1 (Python 3.12), with Shardy and without: it is
# the partitioner behind both, so turning Shardy off does not help. What does help:
#   - m not sharded over tensor, so that nobody wants the result so;
#   - the batch over (fsdp, replica) in place of (replica, fsdp), with w as it was;
#   - many rows: XLA picks its strategy by size, and at 512 rows of 64 the one it picks is right.
#     A test at one size therefore says little about another.
#
# Runs on 8 simulated CPU devices, and says nothing of GPUs and TPUs, whose compilers may choose
# otherwise. Installs into a temporary folder, which it removes.
#   PYTHON, PYTHON312   the interpreters, default python3.11 and python3.12
#   JAX_VERSION         a release to try on python3.12 in place of 0.12.0.1
# Exit status 0: as stated above. "changed: ..." and 1: it no longer is.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/program.py" <<'PY'
import sys

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

ORDER = ("replica", "fsdp")


def product(m, x, w):
  return m * (x @ w)


def rows(shape, order=ORDER, columns="tensor", size=(8, 8)):
  """Where each row of the result came from: x holds its row numbers, w and m change nothing."""
  mesh = jax.make_mesh(shape, ("replica", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

  def put(value, *spec):
    return jax.device_put(value.astype(np.float32), NamedSharding(mesh, P(*spec)))

  x = np.repeat(np.arange(size[0])[:, None], size[1], 1)
  m = put(np.ones(size), order, columns)
  out = jax.jit(product)(m, put(x, order, "tensor"), put(np.eye(size[1]), "tensor", "fsdp"))
  found = np.asarray(out)
  assert (found == found[:, :1]).all()
  return [int(i) for i in found[:, 0]]


RIGHT, WRONG = list(range(8)), [0, 1, 4, 5, 2, 3, 6, 7]
changed = []
for shardy in (True, False):
  jax.config.update("jax_use_shardy_partitioner", shardy)
  print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, Shardy {'on' if shardy else 'off'}")
  x = np.repeat(np.arange(8, dtype=np.float32)[:, None], 8, 1)
  one = jax.jit(product)(np.ones_like(x), x, np.eye(8, dtype=np.float32))
  cases = [
    ("one device", [int(i) for i in np.asarray(one)[:, 0]], RIGHT),
    ("2x2x2", rows((2, 2, 2)), WRONG),
    ("1x4x2", rows((1, 4, 2)), RIGHT),
    ("4x1x2", rows((4, 1, 2)), RIGHT),
    ("4x2x1", rows((4, 2, 1)), RIGHT),
    ("2x2x2, m not over tensor", rows((2, 2, 2), columns=None), RIGHT),
    ("2x2x2, batch over (fsdp, replica)", rows((2, 2, 2), order=ORDER[::-1]), RIGHT),
  ]
  for name, found, stated in cases:
    print(f"  {name:34}", *found)
    if found != stated:
      changed.append(f"{name}, Shardy {shardy}: rows {found}, were {stated}")
  for size, stated in (((8, 64), 4), ((512, 64), 0)):
    moved = sum(i != row for i, row in enumerate(rows((2, 2, 2), size=size)))
    print(f"  {f'2x2x2, {size[0]} rows of {size[1]}':34} {moved} rows moved")
    if moved != stated:
      changed.append(f"{size}, Shardy {shardy}: {moved} rows moved, were {stated}")
sys.exit("changed: " + "; ".join(changed) if changed else 0)
PY

# Each release in an environment of its own; the rest of the pins are the same for both.
try() {
  local python=$1 version=$2
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0 opt_einsum==3.4.0
  JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 TF_CPP_MIN_LOG_LEVEL=3 \
    "$work/$version/bin/python" "$work/program.py" || status=1
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
