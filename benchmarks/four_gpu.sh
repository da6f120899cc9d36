#!/usr/bin/env bash
# The headline layout, three stages and a media rank, measured on all tiers in one call.
#
#     benchmarks/four_gpu.sh OUT            # four GPUs, random weights at the 14B shape, 9 minutes at most
#     GPUS=2 benchmarks/four_gpu.sh OUT     # two stages over NCCL, the media rank beside the second
#     GPUS=1 benchmarks/four_gpu.sh OUT     # all four ranks on one GPU, over local sockets
#     GPUS=0 benchmarks/four_gpu.sh OUT     # four CPU processes and a tiny network: the script itself
#
# Every section is one start of a group, which then makes the videos of all its sizes; only another
# precision or another way of the tensors needs another start. The most telling sections come first:
#
#     section          starts  limit   what it needs, s
#     all-sizes        2       230     64 + balanced 35 + high 23 + fast 17, a rank killed + 60: 199
#     all-sizes-fp8    1       160     64 + 35 + 23 + 17: 139
#     no-peer-access   1       110     64 + balanced alone 21: 85
#     sockets          1       110     64 + 21: 85
#     fast-alone       1       100     64 + 6: 70, in bfloat16 throughout, which only this size fits in
#
# The first four need 508 s; the last one comes through where starts are quicker. 64 s is what a start
# of four ranks on one H100 took at the 14B shape; 60 s for one after a kill is guessed from it. The
# rest is arithmetic, not measured: a block of 12 frames at 688*368 every 0.44 s, which is a third of
# what one H200 took for all layers; per size two jobs of 24 blocks and, where it is not the group's
# largest, 8 blocks that do not count and 10 s to record and compile.
#
# Each section has its own time limit and leaves its results, size by size, in OUT at once; what no
# longer fits into TOTAL_S is cut short, or skipped and said. SECTIONS="all-sizes sockets" runs only
# those, SECTION_S=60 gives each so much. Exit status 1 when a section failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="$(mkdir -p "${1:?name a folder for the results}" && cd "$1" && pwd)"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}"

GPUS="${GPUS:-4}"
TOTAL_S="${TOTAL_S:-530}"
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

# section NAME LIMIT_S OPTIONS...: measure one group, unless time is up or it was not asked for.
section() {
    local name="$1" limit="${SECTION_S:-$2}" left=$((TOTAL_S - SECONDS)) status=0
    shift 2
    [[ "$SECTIONS" == all || " $SECTIONS " == *" $name "* ]] || return 0
    if ((left < 10)); then
        echo "== $name: skipped, $TOTAL_S s are over" | tee -a "$out/log.txt"
        return 0
    fi
    mkdir -p "$out/$name"
    echo "== $name" | tee -a "$out/log.txt"
    timeout -k 5 "$((left < limit ? left : limit))" "$python" -m benchmarks.pipeline \
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
    fast="64*64:3" balanced="64*64" high="80*64"
else
    fast="384*256:3" balanced="688*368" high="704*384"
fi
export NCCL_P2P_DISABLE=0
section all-sizes 230 --size "$balanced $high $fast" --kill 1
section all-sizes-fp8 150 --size "$balanced $high $fast" --precision fp8+8-bit
NCCL_P2P_DISABLE=1 section no-peer-access 100 --size "$balanced"
section sockets 100 --size "$balanced" --transport sockets
section fast-alone 100 --size "$fast"

"$python" -m benchmarks.four_gpu "$out" | tee "$out/table.md"
exit "$failed"
