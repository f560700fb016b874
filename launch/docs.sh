#!/usr/bin/env bash
# Makes a site of docs/ in work/site and fails for a link that leads nowhere.
#
#   bash launch/docs.sh [DIR]     DIR in place of work/site
#
# launch/environment.sh has PYTHON= and VENV=.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh

make_environment
install_once "[docs]"
site="${1:-work/site}"
"$VENV/bin/python" -m sphinx -q -W --keep-going -b html docs "$site"
echo "$site/index.html"
