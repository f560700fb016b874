#!/usr/bin/env bash
# Trains the miniature's generator on this machine (--from-scratch: every part of it), stage by
# stage, and reports what it can do.
# Arguments go to launch/quickstart.py (`--help` shows them); launch/environment.sh has PYTHON=.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

make_environment
install_once ""
exec "$VENV/bin/python" launch/quickstart.py "$@"
