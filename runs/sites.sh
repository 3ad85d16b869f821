#!/usr/bin/env bash
# How many sites a plan needs: the shipped models with tokens leaving at two to six layers, timed and asked.
#   bash runs/sites.sh [llava] [one-thread] [blip2] [flamingo] [accuracy]     without a name: all; what is measured already is skipped
# On two idle cores: llava 3 minutes, one-thread 1, blip2 2, flamingo 2; accuracy 25, on busy ones as well.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh
TWO=atp:sites=vision:0/vision:3 FOUR=atp:sites=vision:0/vision:1/vision:2/vision:3 SPREAD=atp:sites=vision:0/vision:2/vision:4
SIX=$FOUR/language:2/language:4

timed() { # model, methods
    ROUNDS=${ROUNDS:-15} measure "sites-$1" --model "atp-mini-$1" --methods "$2" --compare resize --budget 0.6,0.4 --batch 1,4,16 --answer-tokens 1
}
one-thread() { # as on a small device, or where every core has a model of its own
    THREADS=1 OMP_NUM_THREADS=1 ROUNDS=${ROUNDS:-15} measure sites-llava-one-thread --model atp-mini-llava --methods "$TWO,$FOUR,$SIX" --compare resize \
        --budget 0.6,0.4 --answer-tokens 1
}
asked() { # model, methods
    local budget
    for budget in 0.6 0.4; do
        local folder="$out/sites-$1/$budget"
        [ -z "${FORCE:-}" ] && "$python" runs/whole.py "$folder/table.json" && continue
        "$python" -m atp.evals.table --model "atp-mini-$1" --methods "$2" --questions "${QUESTIONS:-2000}" --budget "$budget" --out "$folder"
    done
}
llava() { timed llava "$TWO,$FOUR,$SIX"; }
blip2() { timed blip2 "$TWO,$SPREAD,$SIX"; }
flamingo() { timed flamingo "$TWO,$SPREAD,$FOUR"; }
accuracy() {
    asked llava "$TWO,$FOUR,$SIX"
    asked blip2 "$TWO,$SPREAD,$SIX"
    asked flamingo "$TWO,$SPREAD,$FOUR"
}

parts "3 llava" "1 one-thread" "2 blip2" "2 flamingo" "25 accuracy" -- "$@"
