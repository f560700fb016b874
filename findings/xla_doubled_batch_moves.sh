#!/usr/bin/env bash
#
# Doubling a batch by concatenation moves it between devices that hold it already.
#
# Classifier-free guidance is written so everywhere: one evaluation of the network on
# jnp.concatenate([x, x]), half of it with a condition. Let every device of a mesh hold all of x, and
# let the doubled batch be wanted by rows. Each device then has all that its rows are made of, so one
# expects that it takes them and that nothing is sent. Collectives in the compiled program, for a
# batch of 1, 2 or 4 before it is doubled, on two devices:
#
#   jnp.concatenate([x, x])                 one all-to-all
#   jnp.stack([x, x]).reshape(...)          three
#   jnp.tile, jnp.broadcast_to + reshape    none
#
# The same values each time. In a sampler's loop, with the two halves split and mixed afterwards and
# x itself left to XLA, it grows: a step has two all-to-alls, a collective-permute and an all-reduce,
# since XLA cuts x, which nobody asked for. Doubled by a broadcast, and with the mixing told to have
# both halves whole, it has one all-gather.
#
# Seen with jax 0.10.2 (Python 3.11) and jax 0.12.0.1 (Python 3.12), with Shardy and without.
#
# Runs on 2 simulated CPU devices, and says nothing of GPUs and TPUs, whose compilers may choose
# otherwise. Installs into a temporary folder, which it removes.
#   PYTHON, PYTHON312   the interpreters, default python3.11 and python3.12
#   JAX_VERSION         a release to try on python3.12 in place of 0.12.0.1
# Exit status 0: as stated above. "changed: ..." and 1: it no longer is.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/program.py" <<'PY'
import re
import sys

import jax
from jax.lax import with_sharding_constraint as constrain
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
ROWS, WHOLE = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
W = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


def network(x):
  return constrain(jnp.tanh(constrain(x, ROWS) @ W), ROWS)


def rows(x):
  return x.reshape(-1, *x.shape[2:])


TWICE = {
  "concatenate": lambda x: jnp.concatenate([x, x]),
  "stack": lambda x: rows(jnp.stack([x, x])),
  "tile": lambda x: jnp.tile(x, (2, 1, 1)),
  "broadcast_to": lambda x: rows(jnp.broadcast_to(x[None], (2, *x.shape))),
}


def split(x):
  without, given = jnp.split(network(TWICE["concatenate"](x)), 2)
  return without + 2.0 * (given - without)


def told(x):
  pairs = network(TWICE["broadcast_to"](x)).reshape(2, *x.shape)
  without, given = constrain(pairs, WHOLE)
  return without + 2.0 * (given - without)


def sampler(step):
  return lambda x: jax.lax.fori_loop(0, 4, lambda _, x: step(x), x)


def seen(fn, batch):
  """The kinds of collectives in the compiled program, and what it gives."""
  x = np.random.default_rng(1).normal(size=(batch, 8, 8)).astype(np.float32)
  compiled = jax.jit(fn).lower(jax.device_put(x, WHOLE)).compile()
  kinds = re.findall(r" (all-[a-z]+(?:-[a-z]+)?|collective-permute)(?:-start)?\(", compiled.as_text())
  return kinds, np.asarray(compiled(jax.device_put(x, WHOLE)))


STATED = {"concatenate": 1, "stack": 3, "tile": 0, "broadcast_to": 0}
LOOPS = {
  "sampler, concatenate": (split, ["all-to-all", "all-to-all", "collective-permute", "all-reduce"]),
  "sampler, broadcast_to": (told, ["all-gather"]),
}
changed = []
for shardy in (True, False):
  jax.config.update("jax_use_shardy_partitioner", shardy)
  print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, Shardy {'on' if shardy else 'off'}")
  for batch in (1, 2, 4):
    results = []
    for name, twice in TWICE.items():
      kinds, out = seen(lambda x: network(twice(x)), batch)
      results.append(out)
      print(f"  batch {batch}, {name:22}", *(kinds or ["none"]))
      if kinds != ["all-to-all"] * STATED[name]:
        changed.append(f"{name}, batch {batch}, Shardy {shardy}: {kinds}")
    assert all(np.array_equal(out, results[0]) for out in results)
  results = []
  for name, (step, stated) in LOOPS.items():
    kinds, out = seen(sampler(step), 1)
    results.append(out)
    print(f"  {name:31}", *kinds)
    if kinds != stated:
      changed.append(f"{name}, Shardy {shardy}: {kinds}")
  np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
sys.exit("changed: " + "; ".join(changed) if changed else 0)
PY

# Each release in an environment of its own; the rest of the pins are the same for both.
try() {
  local python=$1 version=$2
  "$python" -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0 opt_einsum==3.4.0
  JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 TF_CPP_MIN_LOG_LEVEL=3 \
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
