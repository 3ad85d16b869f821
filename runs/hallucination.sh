#!/usr/bin/env bash
# Objects that are not there: POPE, CHAIR and objects that usually go together: docs/results/hallucination.md.
# About 25 minutes on two idle cores for three models. Killed? The same command goes on. A look:  DRY=1 bash runs/hallucination.sh
. "$(dirname "$0")/models.sh"
TASKS="${TASKS:-pope,chair,spurious}"
BUDGETS="${BUDGETS:-1.0,0.6,0.4,0.25}"
METHODS="${METHODS:-atp,random,uniform}"
SCENES="${SCENES:-100}" # also the number of captions
LIMIT="${LIMIT:-600}"   # questions of each task
data="$(drawn "$SCENES")"
each_model hallucination --tasks "$TASKS" --methods "$METHODS" --budgets "$BUDGETS" --data "$data" --limit "$LIMIT"
"$python" runs/pages.py hallucination --docs "$DOCS" "${found[@]}"
