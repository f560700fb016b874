#!/usr/bin/env bash
#
# Three flags that lists for TPU pods share, each known and each taken, are refused together by the
# newer libtpu for every chip but v5e, since what they did "might lead to ... incorrect results".
#
#   xla_tpu_enable_async_collective_fusion
#   xla_tpu_enable_async_collective_fusion_fuse_all_gather
#   xla_enable_async_all_gather
#
# They put all-gathers of weights into the steps of a matmul, and are passed on for v4, v5p and v6e
# from one project to the next (MaxText, benchmarks/xla_flags_library.py, has them). Compiled with no
# TPU present, for one chip of each generation:
#
#                        libtpu 0.0.42.1     libtpu 0.0.50.1
#   the first two        taken               taken
#   the last             taken               taken
#   all three, v5e       taken               taken
#   all three, others    taken, no word      FAILED_PRECONDITION: Continuation fusion for AllGather
#                                            is enabled on platform viperfish (v5p), but it is not
#                                            supported/recommended on platforms other than TPU v5e
#
# So a check that each name is known says nothing, nothing of the older release warns of wrong
# results, and an upgrade of libtpu stops a run before its first step. Whether results of the older
# one are wrong is not shown here: there is no TPU.
#
# Seen with jax 0.10.2, libtpu 0.0.42.1 (Python 3.11) and jax 0.12.0.1, libtpu 0.0.50.1 (Python
# 3.12). Installs into a temporary folder, which it removes.
#   PYTHON, PYTHON312   the interpreters, default python3.11 and python3.12
#   JAX_VERSION         a release to try on python3.12 in place of 0.12.0.1, with the libtpu it asks
#                       for
# Exit status 0: as stated above. "changed: ..." and 1: it no longer is.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/program.py" <<'PY'
from importlib.metadata import version
import sys

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

FUSE = {
  "xla_tpu_enable_async_collective_fusion": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}
LAST = {"xla_enable_async_all_gather": "true"}
WAYS = {"the first two": FUSE, "the last": LAST, "all three": FUSE | LAST}
refuses = sys.argv[1] == "refuses"
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, libtpu {version('libtpu')}")
changed = []
for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
  device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
  x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=SingleDeviceSharding(device))
  for way, flags in WAYS.items():
    try:
      jax.jit(lambda x: x @ x).lower(x).compile(compiler_options=flags)
      said = "taken"
    except jax.errors.JaxRuntimeError as error:
      said = str(error)
    print(f"  {name:12} {way:14} {said[:100]}")
    expected = refuses and way == "all three" and not name.startswith("v5e")
    if expected != ("Continuation fusion for AllGather" in said) or (said != "taken") != expected:
      changed.append(f"{name}, {way}: {said[:100]}")
sys.exit("changed: " + "; ".join(changed) if changed else 0)
PY

# Each release in an environment of its own; the rest of the pins are the same for both.
try() {
  local python=$1 version=$2 libtpu=$3 stated=$4
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" "$libtpu" \
    numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0 opt_einsum==3.4.0
  JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TF_CPP_MIN_LOG_LEVEL=3 \
    "$work/$version/bin/python" "$work/program.py" "$stated" 2>"$work/log" || {
    status=1
    grep changed "$work/log" || tail -n 5 "$work/log"
  }
}

status=0
try "${PYTHON:-python3.11}" 0.10.2 libtpu==0.0.42.1 takes
python312=${PYTHON312:-python3.12}
if "$python312" --version >/dev/null 2>&1; then
  if [ -n "${JAX_VERSION:-}" ]; then libtpu=libtpu; else libtpu=libtpu==0.0.50.1; fi
  try "$python312" "${JAX_VERSION:-0.12.0.1}" "$libtpu" refuses
else
  echo "not tried: jax ${JAX_VERSION:-0.12.0.1}, for want of a Python 3.12 (PYTHON312=)"
fi
if [ "$status" = 0 ]; then echo "as stated"; fi
exit "$status"
