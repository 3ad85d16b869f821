#!/usr/bin/env bash
# Is what was kept for the first question of a chat enough for the second, or must it be chosen anew? docs/results/turns.md.
# 150 pairs of questions take about 10 minutes on one idle core. Killed? The same command goes on with the next pair.
# A look:  DRY=1 bash runs/turns.sh
MODELS="${MODELS:-atp-mini-llava}" # BLIP-2 and Flamingo do not go on with a cache that holds the image
. "$(dirname "$0")/models.sh"
BUDGETS="${BUDGETS:-0.6,0.4,0.25}"
STEPS="${STEPS:-language:2=0.15,language:2=0.05}" # the whole tower, then a question's own choice at one site
ITEMS="${ITEMS:-150}" # pairs of questions
found=()
for model in "${present[@]}"; do
    for given in "$BUDGETS" "$STEPS"; do
        out="$OUT/turns/$(basename "$model")-$SPLIT-${given//,/-}.jsonl"
        "$python" runs/turns.py measure "$out" --model "$model" --budgets "$given" --pairs "$ITEMS" --split "$SPLIT"
        found+=("$out")
    done
done
"$python" runs/turns.py page "${found[@]}" --docs "$DOCS"
