#!/usr/bin/env bash
# Are trained modules worth their file? Trains them beside the frozen shipped model, then asks held-out questions with atp and with
# the gate at the same counts, and with LVPruning at the same FLOPs or the least it reaches; writes docs/results/gate.md. What is recorded is not done again.
# THREADS=2 MINUTES=8 QUESTIONS=2000 KINDS="gate lvpruning" BUDGETS="0.4 0.25" MODEL=atp-mini-llava OUT=out/gate bash runs/gate.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src OMP_NUM_THREADS="${THREADS:-2}"
python="${PYTHON:-python}" model="${MODEL:-atp-mini-llava}" out="${OUT:-out/gate}" budgets="${BUDGETS:-0.4 0.25}" # from 0.57 on atp leaves in the tower only, and a gate has other counts
mkdir -p "$out"

for kind in ${KINDS:-gate lvpruning}; do
    weights="$out/$kind.safetensors"
    [ -f "$weights" ] && [ ! -f "$weights.resume" ] || "$python" -m atp train-gate --kind "$kind" --model "$model" --out "$weights" \
        --minutes "${MINUTES:-8}" --budget "${budgets// /,}"
    for budget in $budgets; do
        [ -f "$out/$kind/$budget/table.json" ] || "$python" -m atp.evals.table --model "$model" --budget "$budget" \
            --questions "${QUESTIONS:-2000}" --methods "$kind" --weights "$kind=$weights" --out "$out/$kind/$budget"
    done
done
"$python" runs/gate.py "$out" "${PAGE:-docs/results/gate.md}"
