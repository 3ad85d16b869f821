#!/usr/bin/env bash
# Methods x budgets x models x tasks at equal counted FLOPs: docs/results/accuracy.md and accuracy.svg.
# About 30 minutes on two idle cores for three models. Killed? The same command goes on.
# All methods:  METHODS=all bash runs/accuracy.sh        A look:  DRY=1 bash runs/accuracy.sh
. "$(dirname "$0")/models.sh"
TASKS="${TASKS:-vqav2,gqa,coco}"
BUDGETS="${BUDGETS:-1.0,0.75,0.6,0.4,0.25}"
METHODS="${METHODS:-atp,random,uniform,resize,tome,evit}" # the first one is compared with the others
SCENES="${SCENES:-100}"                                   # also the number of captions
LIMIT="${LIMIT:-250}"                                     # questions of each task
if [ "$METHODS" = all ]; then METHODS="$(all_methods)"; fi
data="$(drawn "$SCENES")"
each_model accuracy --tasks "$TASKS" --methods "$METHODS" --budgets "$BUDGETS" --data "$data" --limit "$LIMIT"
"$python" runs/pages.py accuracy --docs "$DOCS" --first "${METHODS%%,*}" "${found[@]}"
