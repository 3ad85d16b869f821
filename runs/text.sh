#!/usr/bin/env bash
# What is gained where text is long, and leaves too: docs/results/text.md. About 15 minutes on one idle core.
# Killed? The same command goes on with the next prompt. A look:  DRY=1 bash runs/text.sh
MODELS="${MODELS:-atp-mini-llava atp-mini-flamingo}"
. "$(dirname "$0")/models.sh"
BUDGETS="${BUDGETS:-0.6,0.4}"
ITEMS="${ITEMS:-150}" # questions that are pruned
CURVE="${CURVE:-60}"  # questions a prompt that only the unpruned model is asked
declare -A PRUNED=([atp-mini-llava]="examples:8 questions:12 captions:4" [atp-mini-flamingo]="shots:2 shots:2:12 examples:8")
declare -A WHOLE=([atp-mini-llava]="plain:0 examples:4 examples:24 captions:1 english:1 shots:1 shots:2"
    [atp-mini-flamingo]="plain:0 shots:1 examples:4")
[ "${DRY:-0}" = 1 ] && ITEMS=6 CURVE=4
found=()
asked() { # model, prompt, questions, budgets
    local out="$OUT/text/$(basename "$1")-$SPLIT-$2-$3-${4//,/-}.json"
    [ -f "$out" ] || "$python" runs/text.py measure "$out" --model "$1" --prompt "$2" --items "$3" --budgets "$4" --split "$SPLIT"
    found+=("$out")
}
for model in "${present[@]}"; do
    name="$(basename "$model")"
    for prompt in ${PRUNED[$name]:-examples:8}; do asked "$model" "$prompt" "$ITEMS" "$BUDGETS"; done
    for prompt in ${WHOLE[$name]:-plain:0}; do asked "$model" "$prompt" "$CURVE" ""; done
done
"$python" runs/text.py page "${found[@]}" --docs "$DOCS"
