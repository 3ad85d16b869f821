#!/usr/bin/env bash
# Time against visual tokens, unpruned and pruned: a first token from 196 to 10,000 of them; and from how many tokens, words and answers on
# pruning is faster at all.
#   bash runs/growth.sh [sizes] [even]     without a name: both; what is measured already is skipped, FORCE=1 measures it again
# On two idle cores with bfloat16 units: sizes 3 minutes, even 3. 3 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh

sizes() { into growth bench.json "$python" runs/growth.py --rounds "${ROUNDS:-3}"; }
even() {
    into even bench.json "$python" runs/growth.py --sides 4,6,8,10,14,20 --text 16,256,1024 --answer 9 --budget 0.6 --rounds "${ROUNDS:-7}"
}

parts "3 sizes" "3 even" -- "$@"
