#!/usr/bin/env bash
# Several processes on this machine, started again when one is lost: a rehearsal of a pod.
#
#   bash launch/local_multiprocess.sh 2 --config=configs/NAME.py --workdir=DIR [...]
#
#   BLIP3O="blip3o"   the command, e.g. "python -m blip3o_jax.cli"
#   RESTARTS=100      how often at most all are started again (launch/restart.sh)
#   PORT=             of process 0; by default a free one
#
# SIGTERM and SIGINT go to every process; then nothing is started again. On a machine with GPUs the
# processes must share them out: set CUDA_VISIBLE_DEVICES for one process a GPU by hand.
set -uo pipefail
# shellcheck source=launch/restart.sh
. "$(dirname "${BASH_SOURCE[0]}")/restart.sh"

count="${1:?how many processes}"
shift
read -ra blip3o <<<"${BLIP3O:-blip3o}"
pids=()
leaving=""
forward() {
  leaving=yes
  kill -TERM "${pids[@]}" 2>/dev/null
}
trap forward TERM INT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

for ((attempt = 0; ; attempt++)); do
  port="${PORT:-$(free_port)}" pids=()
  for ((i = 0; i < count; i++)); do
    "${blip3o[@]}" train "$@" --coordinator="127.0.0.1:$port" --processes="$count" --process="$i" &
    pids+=($!)
  done
  if [ -n "$leaving" ]; then forward; fi
  status=0
  for ((i = 0; i < count; i++)); do
    wait_for "${pids[$i]}"
    if [ "$code" != 0 ]; then echo "process $i (pid ${pids[$i]}) left with exit code $code" >&2; fi
    # An error that somebody must mend outweighs the others' restarts.
    if [ "$code" != 0 ] && { [ "$status" = 0 ] || ! asks_for_restart "$code"; }; then status=$code; fi
  done
  if [ -n "$leaving" ] || ! asks_for_restart "$status"; then exit "$status"; fi
  if [ "$attempt" -ge "$RESTARTS" ]; then echo "RESTARTS=$RESTARTS are used up" >&2; exit "$status"; fi
  echo "starting all $count processes again ($((attempt + 1)) of at most $RESTARTS)" >&2
done
