#!/usr/bin/env bash
# Does what stays lie on what is asked about, and do answers rest on it? docs/results/grounding.md.
# About 15 minutes on two idle cores for three models. Killed? The same command goes on: what is measured is not measured again.
# A look:  DRY=1 bash runs/grounding.sh
. "$(dirname "$0")/models.sh"
BUDGETS="${BUDGETS:-0.6 0.4 0.25}"
METHODS="${METHODS:-atp,fastv,evit,uniform}"
ITEMS="${ITEMS:-400}" # questions about visible objects
export OMP_NUM_THREADS="${THREADS:-2}"
found=()
for model in "${present[@]}"; do
    for budget in $BUDGETS; do
        out="$OUT/grounding/$(basename "$model")/$budget-$ITEMS-$SPLIT-${METHODS//,/-}"
        if [ ! -f "$out/grounding.json" ]; then
            echo "== grounding: $model at $budget" >&2
            "$python" -m atp.evals.grounding --model "$model" --budget "$budget" --methods "$METHODS" --items "$ITEMS" \
                --split "$SPLIT" --out "$out" >/dev/null
        fi
        found+=("$out")
    done
done
"$python" runs/pages.py grounding --docs "$DOCS" "${found[@]}"
