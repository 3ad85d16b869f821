#!/usr/bin/env bash
# Is what was kept for the first question of a chat enough for the second, or must it be chosen anew? docs/results/turns.md.
# 150 pairs of questions take about 10 minutes on one idle core. Killed? The same command goes on with the next pair.
# A look:  DRY=1 bash runs/turns.sh
MODELS="${MODELS:-atp-mini-llava}" # BLIP-2 and Flamingo do not go on with a cache that holds the image
. "$(dirname "$0")/models.sh"
BUDGETS="${BUDGETS:-0.6,0.4,0.25}"
ITEMS="${ITEMS:-150}" # pairs of questions
found=()
for model in "${present[@]}"; do
    out="$OUT/turns/$(basename "$model")-$SPLIT-${BUDGETS//,/-}.jsonl"
    "$python" runs/turns.py measure "$out" --model "$model" --budgets "$BUDGETS" --pairs "$ITEMS" --split "$SPLIT"
    found+=("$out")
done
"$python" runs/turns.py page "${found[@]}" --docs "$DOCS"
