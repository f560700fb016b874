#!/usr/bin/env bash
# A run on a Cloud TPU VM or pod slice, from your own machine with gcloud.
#
#   export NAME=blip3o ZONE=us-east5-a TYPE=v5p-128
#   bash launch/tpu_vm.sh create
#   bash launch/tpu_vm.sh install          builds a wheel of this checkout, installs it on every host
#   bash launch/tpu_vm.sh train --config=blip3o_8b_pretrain:qwen=/mnt/qwen --workdir=/mnt/runs/8b
#   bash launch/tpu_vm.sh stop             SIGTERM to every process: they save and leave
#   bash launch/tpu_vm.sh delete
#
#   VERSION=v2-alpha-tpuv5   the runtime version that goes with TYPE; SPOT=1 for spot machines
#   RESTARTS=100             how often at most it starts again (launch/restart.sh)
# /mnt/runs must be one folder that all hosts mount (Filestore, NFS, Lustre).
set -uo pipefail
# shellcheck source=launch/restart.sh
. "$(dirname "${BASH_SOURCE[0]}")/restart.sh"

: "${NAME:?}" "${ZONE:?}"
tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
everywhere() { tpu ssh --worker=all --command="$1"; }

case "${1:-}" in
  create)
    tpu create --accelerator-type="${TYPE:?}" --version="${VERSION:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    ;;
  install)
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    rm -rf dist && python3 -m pip wheel -q --no-deps --wheel-dir dist . || exit 1
    wheel="$(basename dist/*.whl)"
    gcloud compute tpus tpu-vm scp "dist/$wheel" "$NAME:" --zone="$ZONE" --worker=all || exit 1
    everywhere "python3 -m venv blip3o && blip3o/bin/pip install -q --upgrade './${wheel}[tpu]' \
-f https://storage.googleapis.com/jax-releases/libtpu_releases.html"
    ;;
  train)
    words="$(printf '%q ' "${@:2}")"
    for ((attempt = 0; ; attempt++)); do
      # gcloud's own exit code says little: each host prints the one of its process.
      said="$(mktemp)"
      everywhere "blip3o/bin/blip3o train $words --coordinator=auto; echo exit-code-\$?" 2>&1 | tee "$said"
      status=0
      while read -r code; do
        if [ "$code" != 0 ] && { [ "$status" = 0 ] || ! asks_for_restart "$code"; }; then status=$code; fi
      done < <(sed -n 's/.*exit-code-\([0-9]*\).*/\1/p' "$said")
      grep -q exit-code- "$said" || { echo "no host said how it ended; \`stop\` first" >&2; exit 1; }
      rm -f "$said"
      # 75: `stop`, or the machine is taken away.
      if [ "$status" = 75 ] || ! asks_for_restart "$status"; then exit "$status"; fi
      if [ "$attempt" -ge "$RESTARTS" ]; then exit "$status"; fi
      echo "starting all hosts again ($((attempt + 1)) of at most $RESTARTS)" >&2
    done
    ;;
  stop) everywhere "pkill -TERM -f '[b]lip3o/bin/blip3o train'" ;;
  delete) tpu delete --quiet ;;
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
