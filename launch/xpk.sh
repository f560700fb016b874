#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster that xpk made (`pip install xpk`), from your own machine.
#
#   export PROJECT=mine ZONE=us-east5-a CLUSTER=pods TYPE=v5p-128 IMAGE=REGISTRY/blip3o:tpu
#   bash launch/xpk.sh NAME --config=blip3o_8b_pretrain:qwen=/mnt/qwen --workdir=/mnt/runs/8b
#
#   SLICES=1       how many slices; --config.mesh.replica must be a multiple of it
#   RESTARTS=100   how often at most all are started again
#   STORAGE=       the name of a storage that `xpk storage attach` made known, with /mnt in it
#   XPK=xpk        the command; XPK="echo xpk" shows what would be called
# IMAGE is that of docker/Dockerfile.tpu. The same command with the same workdir goes on. Its log:
# `xpk workload list`, and `kubectl logs` of a pod. SIGTERM: `xpk workload delete --workload=NAME`.
set -euo pipefail
# shellcheck source=launch/restart.sh
. "$(dirname "${BASH_SOURCE[0]}")/restart.sh"

name="${1:?the name of the workload}"
shift
words="$(printf '%q ' "$@")"
read -ra xpk <<<"${XPK:-xpk}"
# `exec`, so that SIGTERM reaches the run. Beside these codes xpk starts again after 42 and 127 to 255.
"${xpk[@]}" workload create \
  --project="${PROJECT:?}" --zone="${ZONE:?}" --cluster="${CLUSTER:?}" --workload="$name" \
  --tpu-type="${TYPE:?}" --num-slices="${SLICES:-1}" --docker-image="${IMAGE:?}" \
  --max-restarts="$RESTARTS" --restart-on-exit-codes=75,76,77 \
  ${STORAGE:+--storage="$STORAGE"} \
  --command="exec blip3o train $words--coordinator=auto"
