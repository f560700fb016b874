# shellcheck shell=bash
# Sourced by the launch scripts, from the root of the repository: makes or reuses the environment.
#
#   PYTHON=python3.12   the interpreter; by default the one of a usable environment that is there,
#                       else python3.11, else python3
#   VENV=.venv          the folder of the environment, relative to the repository
#
# A second call does no work while pyproject.toml is as it was: `.installed` in the environment
# holds one line for each set of extras, with the checksum of what it was installed from.

VENV="${VENV:-.venv}"
# A run that names no platform never starts libtpu.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

# Prints "3.11" for an interpreter that runs, can make environments and is new enough.
python_version() {
  "$1" -c 'import ensurepip, sys, venv
assert sys.version_info >= (3, 11)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

choose_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    python_version "$PYTHON" >/dev/null && { echo "$PYTHON"; return; }
    "$PYTHON" -c 'import ensurepip, sys, venv; print(sys.version)' >&2  # what it has to say
    echo "PYTHON=$PYTHON: not a Python of 3.11 or newer that can make an environment" >&2
    return 1
  fi
  for candidate in python3.11 python3 python3.12; do
    python_version "$candidate" >/dev/null && { echo "$candidate"; return; }
  done
  echo "no Python of 3.11 or newer found; name one with PYTHON=" >&2
  return 1
}

# Keeps $VENV when it works and is of the wanted Python; else makes it anew.
make_environment() {
  local found wanted python
  found="$("$VENV/bin/python" -c 'import pip, sys
assert sys.version_info >= (3, 11)
print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)"
  if [ -n "$found" ] && [ -z "${PYTHON:-}" ]; then return; fi
  python="$(choose_python)" || return 1
  wanted="$(python_version "$python")"
  if [ "$found" = "$wanted" ]; then return; fi
  if [ -e "$VENV" ] || [ -L "$VENV" ]; then
    if [ ! -f "$VENV/pyvenv.cfg" ]; then
      echo "$VENV is there and is no Python environment; move it away" >&2
      return 1
    fi
    echo "$VENV is ${found:-not usable}; making it anew with $wanted"
    rm -rf -- "$VENV"
  fi
  echo "making $VENV with $python ($wanted)"
  "$python" -m venv "$VENV" || return 1
  "$VENV/bin/python" -m pip install -qq --upgrade pip || return 1
}

# install_once "" | "[test]" | "[tpu]": installs this package, editable, with those extras.
install_once() {
  local stamp line
  stamp="$VENV/.installed"
  line="blip3o-jax$1 $(cksum <pyproject.toml) $PWD"
  if grep -qxF -- "$line" "$stamp" 2>/dev/null; then return; fi
  echo "installing blip3o-jax$1 into $VENV (some minutes the first time)"
  "$VENV/bin/python" -m pip install -qq --editable ".$1" || return 1
  echo "$line" >>"$stamp"
}
