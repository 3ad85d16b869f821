#!/usr/bin/env bash
# Every method at every budget, on every model and task, at equal counted FLOPs: docs/results/peers.md and peers-MODEL.svg.
# Says first how long it will take on this machine (about 25 minutes on two idle cores). Killed? The same command goes on.
# A look:  DRY=1 bash runs/peers.sh        Fewer:  MODELS=atp-mini-llava METHODS=atp,tome,random bash runs/peers.sh
. "$(dirname "$0")/models.sh"
QUESTIONS="${QUESTIONS:-vqav2,gqa}"
CAPTIONED="${CAPTIONED:-coco}"
BUDGETS="${BUDGETS:-1.0,0.75,0.6,0.4,0.25}"
METHODS="${METHODS:-all}" # the first one is compared with the others
SCENES="${SCENES:-200}"
LIMIT="${LIMIT:-400}"       # questions of each task
CAPTIONS="${CAPTIONS:-200}" # not more than scenes
[ "${DRY:-0}" = 1 ] && CAPTIONS=4
if [ "$METHODS" = all ]; then METHODS="$(all_methods)"; fi
data="$(drawn "$SCENES")"
common=(--methods "$METHODS" --budgets "$BUDGETS" --data "$data")

"$python" runs/estimate.py --jobs "$JOBS" --split "$SPLIT" "${common[@]}" "${present[@]/#/--model=}" \
    --part "$OUT/peers/questions:$QUESTIONS:$LIMIT" --part "$OUT/peers/captions:$CAPTIONED:$CAPTIONS"
each_model peers/questions --tasks "$QUESTIONS" --limit "$LIMIT" "${common[@]}"
folders=("${found[@]}")
each_model peers/captions --tasks "$CAPTIONED" --limit "$CAPTIONS" "${common[@]}"
"$python" runs/peers.py --docs "$DOCS" --first "${METHODS%%,*}" "${folders[@]}" "${found[@]}"
