#!/usr/bin/env bash
# Show memory, heat and work of every card, again and again, and warn when one is nearly full:
#
#     ./monitor_gpu.sh [ROUNDS]     without ROUNDS until Ctrl-C
#
#   INTERVAL_S=2           seconds between two rounds
#   THRESHOLD_MB=21000     a card that holds more is warned of
#   SERVER=http://...      the application, for the state of its group and its queue
#
# It changes nothing. A tier that does not fit a card is refused by the plan before anything is
# allocated; when the warning comes, other programs take part of the card, or the next video should
# be made at a smaller tier.
set -euo pipefail

ROUNDS="${1:-0}"
INTERVAL_S="${INTERVAL_S:-2}"
THRESHOLD_MB="${THRESHOLD_MB:-21000}"
SERVER="${SERVER:-http://127.0.0.1:7860}"
BAR_WIDTH=30

if ! command -v nvidia-smi >/dev/null; then
    echo "monitor_gpu.sh: expected nvidia-smi, which comes with the NVIDIA driver; found none" >&2
    exit 2
fi

# Write one line about a card: index, bar, MB, temperature, work.
show_card() {
    local index=$1 used=$2 total=$3 heat=$4 work=$5 filled bar
    filled=$((used * BAR_WIDTH / total))
    printf -v bar '%*s' "$filled" ''
    bar=${bar// /#}
    printf 'gpu %s [%-*s] %6s of %s MB  %3s C  %3s %%\n' \
        "$index" "$BAR_WIDTH" "$bar" "$used" "$total" "$heat" "$work"
    if [ "$used" -gt "$THRESHOLD_MB" ]; then
        printf 'warning: gpu %s holds %s MB, more than %s; end other programs on it, or choose a %s\n' \
            "$index" "$used" "$THRESHOLD_MB" "smaller tier for the next video" >&2
    fi
}

# Write the state of the application, if it answers.
show_server() {
    python3 - "$SERVER/healthz" 2>/dev/null <<'END' || printf 'server %s does not answer\n' "$SERVER"
import json, sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=2)
except urllib.error.HTTPError as error:
    answer = error  # 503 while nothing is rendered, with the same content
health = json.load(answer)
words = [f"server {health['status']}"]
if "group" in health:  # else it asks to log in
    words += [f"group {health['group']}", f"{health['queue_length']} queued"]
print(", ".join(words))
END
}

round=0
while true; do
    round=$((round + 1))
    date +%H:%M:%S
    cards=$(nvidia-smi --format=csv,noheader,nounits \
        --query-gpu=index,memory.used,memory.total,temperature.gpu,utilization.gpu)
    while IFS=', ' read -r index used total heat work; do
        show_card "$index" "$used" "$total" "$heat" "$work"
    done <<<"$cards"
    show_server
    [ "$round" != "$ROUNDS" ] || break
    sleep "$INTERVAL_S"
done
