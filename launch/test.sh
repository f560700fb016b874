#!/usr/bin/env bash
# Lint, types and tests.
#
#   bash launch/test.sh           ruff, mypy and the default tests, parity included
#   bash launch/test.sh --all     and the slow and the compile-ahead (libtpu) tests (not those of
#                                 minutes: .venv/bin/python -m pytest -m long)
#   bash launch/test.sh --unit    the unit tests alone
#   bash launch/test.sh --setup   make the environment, libtpu included, and stop
#   JOBS=1                        test processes, by default 2
#
# launch/environment.sh has PYTHON= and VENV=.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

mode="${1:-default}"
case "$mode" in
  default | --all | --unit | --setup) ;;
  -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' launch/test.sh; exit ;;
  *) echo "$mode: unknown; expected --all, --unit, --setup or nothing" >&2; exit 2 ;;
esac

make_environment
install_once "[test]"
if [ "$mode" != default ]; then
  install_once "[tpu]" ||
    echo "libtpu does not install here: what asks the TPU compiler will be skipped"
fi
if [ "$mode" = --setup ]; then exit; fi

failed=()
step() {
  local start=$SECONDS name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name")
  echo "== $name: $((SECONDS - start)) s"
}

in_environment() { "$VENV/bin/python" -m "$@"; }

if [ "$mode" != --unit ]; then
  step "ruff check" in_environment ruff check .
  step "ruff format" in_environment ruff format --check .
  step "mypy" in_environment mypy
fi
case "$mode" in
  --all) tests=(-m "not device and not long") ;;
  --unit) tests=(tests/unit) ;;
  *) tests=() ;;
esac
step "pytest" in_environment pytest -n "${JOBS:-2}" --dist worksteal -ra --durations=15 \
  ${tests[@]+"${tests[@]}"}

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
