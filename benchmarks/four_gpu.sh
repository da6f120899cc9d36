#!/usr/bin/env bash
# The headline layout, three stages and a media rank, measured on all tiers in one call.
#
#     benchmarks/four_gpu.sh OUT            # four GPUs, random weights at the 14B shape, 9 minutes at most
#     GPUS=2 benchmarks/four_gpu.sh OUT     # two stages over NCCL, the media rank beside the second
#     GPUS=1 benchmarks/four_gpu.sh OUT     # all four ranks on one GPU, over local sockets
#     GPUS=0 benchmarks/four_gpu.sh OUT     # four CPU processes and a tiny network: the script itself
#
# The most telling sections come first. Each has its own time limit and leaves its results in OUT at
# once; what no longer fits into TOTAL_S is skipped and said. SECTIONS="balanced recovery" runs only
# those. Exit status 1 when a section failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="$(mkdir -p "${1:?name a folder for the results}" && cd "$1" && pwd)"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}"

GPUS="${GPUS:-4}"
TOTAL_S="${TOTAL_S:-530}"
SECTION_S="${SECTION_S:-110}"
SECTIONS="${SECTIONS:-all}"
WEIGHTS="${WEIGHTS:-14b}"
case "$GPUS" in
    4) DEVICES="${DEVICES:-cuda:0,cuda:1,cuda:2,cuda:3}" ;;
    2) DEVICES="${DEVICES:-cuda:0,cuda:1,cuda:1}" MEMORY_GIB="${MEMORY_GIB:-70}" ;;
    1) DEVICES="${DEVICES:-cuda:0,cuda:0,cuda:0,cuda:0}" ;;
    0) DEVICES="${DEVICES:-cpu,cpu,cpu,cpu}" WEIGHTS=tiny ;;
    *) echo "GPUS: expected 4, 2, 1 or 0, got $GPUS" >&2 && exit 2 ;;
esac
MEMORY_GIB="${MEMORY_GIB:-22.15}" # that torch may hold for each rank, the CUDA context included
CLIPS="${CLIPS:-6}"
INFER_FRAMES="${INFER_FRAMES:-48}"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
failed=0

# section NAME BENCHMARK OPTIONS...: run one measurement, unless time is up or it was not asked for.
section() {
    local name="$1" benchmark="$2" left=$((TOTAL_S - SECONDS)) status=0
    shift 2
    [[ "$SECTIONS" == all || " $SECTIONS " == *" $name "* ]] || return 0
    if ((left < 10)); then
        echo "== $name: skipped, $TOTAL_S s are over" | tee -a "$out/log.txt"
        return 0
    fi
    mkdir -p "$out/$name"
    echo "== $name" | tee -a "$out/log.txt"
    timeout -k 5 "$((left < SECTION_S ? left : SECTION_S))" "$python" -m "benchmarks.$benchmark" \
        --random "$WEIGHTS" --devices "$DEVICES" --memory_gib "$MEMORY_GIB" \
        --infer_frames "$INFER_FRAMES" --clips "$CLIPS" --out "$out/$name" "$@" \
        2>&1 | tee -a "$out/log.txt" || status=${PIPESTATUS[0]}
    rm -f "$out/$name"/*.mp4 "$out/$name"/*.wav
    if ((status)); then
        failed=1
        echo "== $name: failed with status $status (124: its time was over)" | tee -a "$out/log.txt"
    fi
}

if [ "$GPUS" = 0 ]; then
    fast="64*64" balanced="64*64" high="80*64"
else
    fast="384*256" balanced="688*368" high="704*384"
fi
export NCCL_P2P_DISABLE=0
section balanced pipeline --size "$balanced" --sample_steps 4
section balanced-fp8 pipeline --size "$balanced" --sample_steps 4 --precision fp8+8-bit
section fast pipeline --size "$fast" --sample_steps 3
section high pipeline --size "$high" --sample_steps 4
section recovery recovery --size "$balanced" --sample_steps 4
NCCL_P2P_DISABLE=1 section balanced-no-peer-access pipeline --size "$balanced" --sample_steps 4
section balanced-sockets pipeline --size "$balanced" --sample_steps 4 --transport sockets
section high-fp8 pipeline --size "$high" --sample_steps 4 --precision fp8+8-bit
section fast-fp8 pipeline --size "$fast" --sample_steps 3 --precision fp8+8-bit

"$python" -m benchmarks.four_gpu "$out" | tee "$out/table.md"
exit "$failed"
