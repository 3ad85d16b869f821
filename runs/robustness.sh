#!/usr/bin/env bash
# Corrupted pictures, perturbed and replaced words, contrast questions, pruned against unpruned: docs/results/robustness.md.
# About 40 minutes on two idle cores for three models. Killed? The same command goes on. A look:  DRY=1 bash runs/robustness.sh
. "$(dirname "$0")/models.sh"
TASKS="${TASKS:-vqav2}"
BUDGETS="${BUDGETS:-1.0,0.6,0.4}"
METHODS="${METHODS:-atp,random}"
CORRUPTIONS="${CORRUPTIONS:-pictures:3,questions:3,replaced:3}" # all severities: pictures,questions,replaced
SCENES="${SCENES:-100}"
LIMIT="${LIMIT:-120}" # questions of each task, each asked under every disturbance
if [ "${DRY:-0}" = 1 ]; then CORRUPTIONS="fog:3,typing:3,replaced:3"; fi
data="$(drawn "$SCENES")"
each_model robustness --tasks "$TASKS" --methods "$METHODS" --budgets "$BUDGETS" --corruptions "$CORRUPTIONS" --data "$data" \
    --limit "$LIMIT"
for folder in "${found[@]}"; do
    "$python" runs/contrast.py "$folder"
done
"$python" runs/pages.py robustness --docs "$DOCS" "${found[@]}"
