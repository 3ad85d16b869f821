#!/usr/bin/env bash
# Is the gate worth its file? Trains it beside the frozen shipped model (under ten minutes on two idle cores), then asks held-out
# questions with atp and with the gate at the same counts, at 0.6 and 0.4 of the FLOPs; intervals from a paired bootstrap over scenes.
# "ATP minus this" above zero: the training-free score is better. KIND=lvpruning trains the other method with modules of its own.
# THREADS=2 MINUTES=8 QUESTIONS=2000 KIND=gate MODEL=atp-mini-llava OUT=out/gate bash runs/gate.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src OMP_NUM_THREADS="${THREADS:-2}"
python="${PYTHON:-python}" model="${MODEL:-atp-mini-llava}" kind="${KIND:-gate}" out="${OUT:-out/gate}"
weights="$out/$kind.safetensors"
mkdir -p "$out"

[ -f "$weights" ] && [ ! -f "$weights.resume" ] || "$python" -m atp train-gate --kind "$kind" --model "$model" --out "$weights" --minutes "${MINUTES:-8}" --budget 0.6,0.4 | tee "$out/train.txt"
for budget in 0.6 0.4; do
    "$python" -m atp.evals.table --model "$model" --budget "$budget" --questions "${QUESTIONS:-2000}" \
        --methods "$kind" --weights "$kind=$weights" --out "$out/$budget"
done
