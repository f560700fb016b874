# shellcheck shell=bash
# Sourced by the launch scripts: how a process is waited for, and which exit codes of `blip3o train`
# ask for the same command again.
#
#   75 saved after SIGTERM, 76 stood still, 77 a partner is gone, above 128 killed by a signal.
# The table is in docs/training.md. RESTARTS=N is how often at most, by default 100.

RESTARTS="${RESTARTS:-100}"

asks_for_restart() {
  case "$1" in
    75 | 76 | 77) return 0 ;;
    130) return 1 ;; # Ctrl-C
    *) [ "$1" -gt 128 ] ;;
  esac
}

# Waits for a process to its end; its exit code in $code. A signal that comes in between ends `wait`
# with 128 and its number, even as the process ends; so the code is asked for once more, at the end.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do wait "$1"; done
  wait "$1"
  # shellcheck disable=SC2034
  code=$?
}
