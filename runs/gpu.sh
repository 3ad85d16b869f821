#!/usr/bin/env bash
# The tables of a GPU: LLaVA-1.5-7B and Qwen2.5-VL-7B at true size in bfloat16 (random weights, nothing is downloaded), time to the first
# token and throughput at batch 1, 8, 16 and 32, fastv with eager attention as its authors run it beside, `resize` at the same FLOPs,
# attention rows by the Triton kernel, what our part costs, and a profile of one pruned prefill in out/.
#   bash runs/gpu.sh [llava] [qwen] [long] [overhead]     without a name: all; what is measured already is skipped, FORCE=1 measures it
#   again. DEVICE=cuda:0. 40 GB of GPU memory; without pip packages beside torch, transformers and triton.
# A look without a GPU:  DEVICE=cpu DEPTH=0.1 BATCH=1 ROUNDS=1 TRITON= OUT=out/dry bash runs/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
THREADS="${THREADS:-8}"
source runs/measure.sh
mkdir -p out
common=(--dtype bf16 --device "${DEVICE:=cuda:0}" --depth "${DEPTH:-1}" --budget 0.6,0.4 --compare fastv,resize --eager fastv)
common+=(--methods atp,atp:sites=vision:0 ${TRITON---kernels triton}) # one site: where launches take the time, every site tells
export ROUNDS="${ROUNDS:-7}"

llava() {
    measure gpu-llava --arch llava-1.5-7b "${common[@]}" --batch "${BATCH:-1,8,16,32}" --answer-tokens 1,16
}
qwen() {
    measure gpu-qwen --arch qwen2.5-vl-7b "${common[@]}" --batch "${BATCH:-1,8,16,32}" --answer-tokens 1,16
}
long() { # where decoding outweighs the prompt
    measure gpu-long --arch llava-1.5-7b "${common[@]}" --batch "${BATCH:-1,8}" --answer-tokens 128
}
overhead() {
    measure overhead-gpu --arch llava-1.5-7b --dtype bf16 --device "$DEVICE" --depth "${DEPTH:-1}" --budget 0.6 --batch "${BATCH:-1,8}" \
        --answer-tokens 4 --compare none --keep-all --round-to 32 --trace out/gpu.json
}

parts "3 llava" "4 qwen" "2 long" "1 overhead" -- "$@"
