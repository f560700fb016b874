#!/usr/bin/env bash
# Trains a complete miniature BLIP3-o on this machine, stage by stage, and reports what it can do.
# Arguments go to launch/quickstart.py (`--help` shows them); launch/environment.sh has PYTHON=.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

make_environment
install_once ""
exec "$VENV/bin/python" launch/quickstart.py "$@"
