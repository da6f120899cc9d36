#!/usr/bin/env bash
# One video on four 24 GB cards: the layers of the 14B network as three pipeline stages on cards 0 to
# 2, encoders and video decoder on card 3.
#
#     ./run_4gpu_tpp.sh --image portrait.png --audio speech.wav --prompt "..." --save_file out.mp4
#
# Every value below can be changed here, by a variable of the same name in the environment, or by an
# option at the end, which counts last. Before the first run: python -m liveavatar.doctor
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/venv.sh"
ensure_venv requirements.txt

# --- Environment ---------------------------------------------------------------------------------
# Ranks take the visible cards in this order, which must be ascending; counted as nvidia-smi does.
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0,1,2,3}"
export CUDA_DEVICE_ORDER="${CUDA_DEVICE_ORDER:-PCI_BUS_ID}"
# Consumer cards have no peer access, and some drivers hang where NCCL tries it. Set it to 0 for cards
# with NVLink; `python -m liveavatar.doctor` measures both.
export NCCL_P2P_DISABLE="${NCCL_P2P_DISABLE:-1}"
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# Memory that was freed can be used for blocks of another size: what fits by the plan fits in truth.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
# One thread per rank is enough for what the host computes; more of them get into each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Where ranks meet that use torch.distributed. Links between stages are local and need no port.
export MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
export MASTER_PORT="${MASTER_PORT:-29103}"

# --- What is made --------------------------------------------------------------------------------
CKPT_DIR="${CKPT_DIR:-$root/ckpt/Wan2.2-S2V-14B}" # Wan-AI/Wan2.2-S2V-14B
LORA_PATH_DMD="${LORA_PATH_DMD-$root/ckpt/LiveAvatar}" # Quark-Vision/Live-Avatar; empty: none
IMAGE="${IMAGE:-$root/examples/maya.png}"
AUDIO="${AUDIO:-$root/examples/maya.wav}"
PROMPT="${PROMPT:-A young woman talks to the camera and smiles, in a bright studio room}"
SAVE_FILE="${SAVE_FILE:-out.mp4}"

# --- How -----------------------------------------------------------------------------------------
SIZE="${SIZE:-688*368}"           # width*height, an area: the portrait sets the shape
NUM_CLIP="${NUM_CLIP:-50}"        # clips at most; the video ends with the speech
INFER_FRAMES="${INFER_FRAMES:-48}" # frames per clip, a multiple of 4
SAMPLE_STEPS="${SAMPLE_STEPS:-4}" # denoise steps per block
BASE_SEED="${BASE_SEED:-420}"     # the same seed makes the same video
NUM_GPUS_DIT="${NUM_GPUS_DIT:-3}" # ranks that hold layers; one more encodes and decodes

options=(
    --ckpt_dir "$CKPT_DIR"
    --image "$IMAGE"
    --audio "$AUDIO"
    --prompt "$PROMPT"
    --size "$SIZE"
    --num_clip "$NUM_CLIP"
    --infer_frames "$INFER_FRAMES"
    --sample_steps "$SAMPLE_STEPS"
    --base_seed "$BASE_SEED"
    --num_gpus_dit "$NUM_GPUS_DIT"
    --ulysses_size "$NUM_GPUS_DIT" # must equal num_gpus_dit
    --enable_vae_parallel          # encoders and decoder get a rank of their own
    --enable_online_decode         # decode every block when it is finished, not every clip
    --offload_model False          # all stays on the cards between blocks
    --tpp_mode True                # split the layers over the ranks
    --save_file "$SAVE_FILE"
    --resume # a file that is complete is left as it is: guardian.sh redoes nothing
)
[ -z "$LORA_PATH_DMD" ] || options+=(--lora_path_dmd "$LORA_PATH_DMD")

exec "$python" "$root/inference/inference_tpp.py" "${options[@]}" "$@"
