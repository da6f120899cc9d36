#!/usr/bin/env bash
# Show memory, heat and work of every card, again and again. When one is nearly full, say so and ask
# the application to make the next videos one tier smaller:
#
#     ./monitor_gpu.sh [ROUNDS]     without ROUNDS until Ctrl-C
#
#   INTERVAL_S=2           seconds between two rounds
#   THRESHOLD_MB=21000     a card that holds more is nearly full
#   PAUSE_S=300            a tier is lowered at most once in so many seconds
#   SERVER=http://...      the application
#   TOKEN_FILE=data/operator.token   lets it ask; the application writes it into its data folder
#
# The tier stays lowered until the operator lifts it (docs/operating.md says how). It stays lowered
# also when memory is free again, so that it does not swing up and down.
set -euo pipefail

ROUNDS="${1:-0}"
INTERVAL_S="${INTERVAL_S:-2}"
THRESHOLD_MB="${THRESHOLD_MB:-21000}"
PAUSE_S="${PAUSE_S:-300}"
SERVER="${SERVER:-http://127.0.0.1:7860}"
TOKEN_FILE="${TOKEN_FILE:-${0%/*}/data/operator.token}"
BAR_WIDTH=30

if ! command -v nvidia-smi >/dev/null; then
    echo "monitor_gpu.sh: expected nvidia-smi, which comes with the NVIDIA driver; found none" >&2
    exit 2
fi

lowered_at=-$PAUSE_S # in seconds of this script

# Ask the application for smaller videos, unless it was asked lately.
lower_tier() {
    [ $((SECONDS - lowered_at)) -ge "$PAUSE_S" ] || return 0
    lowered_at=$SECONDS
    python3 - "$SERVER/api/group/ceiling" "$1" "$TOKEN_FILE" >&2 <<'END' || true
import json, sys, urllib.error, urllib.request
address, reason, token_file = sys.argv[1:]
try:
    token = open(token_file, encoding="ascii").read().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"reason": reason}).encode()
    request = urllib.request.Request(address, body, headers)
    ceiling = json.load(urllib.request.urlopen(request, timeout=5))["ceiling"]
    print(f"the next videos are made at tier {ceiling['tier']} at most")
except urllib.error.HTTPError as error:
    print(f"warning: no tier lowered: {json.load(error)['error']['message']}")
except (OSError, ValueError) as error:
    print(f"warning: no tier lowered: {error}")
END
}

# Write one line about a card: index, bar, MB, temperature, work.
show_card() {
    local index=$1 used=$2 total=$3 heat=$4 work=$5 filled bar
    filled=$((used * BAR_WIDTH / total))
    printf -v bar '%*s' "$filled" ''
    bar=${bar// /#}
    printf 'gpu %s [%-*s] %6s of %s MB  %3s C  %3s %%\n' \
        "$index" "$BAR_WIDTH" "$bar" "$used" "$total" "$heat" "$work"
    if [ "$used" -gt "$THRESHOLD_MB" ]; then
        printf 'warning: gpu %s holds %s MB, more than %s; end other programs on it\n' \
            "$index" "$used" "$THRESHOLD_MB" >&2
        lower_tier "gpu $index holds $used MB, more than $THRESHOLD_MB"
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
