#!/usr/bin/env bash
# Run a command again and again until it succeeds:
#
#     ./guardian.sh ./run_4gpu_tpp.sh --save_file out.mp4
#     ./guardian.sh scripts/run
#
# The web application restarts its ranks by itself; this is for what takes the whole command down, such
# as a driver that fell off the bus or a system out of memory. It pauses PAUSE_S seconds (30) between
# runs, so that the driver can clean up after the ranks. It stops
#
#   - when the command succeeds,
#   - when it ends with status 2: input that cannot be used does not get better,
#   - when it was stopped by Ctrl-C or SIGTERM, which are passed on to it,
#   - after MOST_RESTARTS restarts (0: never),
#
# and ends with the command's status.
set -euo pipefail

PAUSE_S="${PAUSE_S:-30}"
MOST_RESTARTS="${MOST_RESTARTS:-0}"

say() { printf '%s guardian: %s\n' "$(date +%H:%M:%S)" "$1" >&2; }

if [ $# = 0 ]; then
    say "expected a command to guard, such as ./run_4gpu_tpp.sh"
    exit 2
fi

stop() {
    trap '' INT TERM
    say "stopping"
    # Asked of the shell: the signal may come between the start of the command and the next line.
    local child
    child=$(jobs -p)
    if [ -n "$child" ] && kill -TERM "$child" 2>/dev/null; then
        wait "$child" || true
    fi
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM

restarts=0
while true; do
    "$@" &
    status=0
    wait "$!" || status=$?
    case $status in
    0) exit 0 ;;
    2 | 130 | 143)
        say "ended with status $status, which another run would not cure"
        exit "$status"
        ;;
    esac
    if [ "$MOST_RESTARTS" != 0 ] && [ "$restarts" -ge "$MOST_RESTARTS" ]; then
        say "ended with status $status after $restarts restarts; giving up"
        exit "$status"
    fi
    restarts=$((restarts + 1))
    say "ended with status $status; restart $restarts in $PAUSE_S s"
    sleep "$PAUSE_S" &
    wait "$!" || true
done
