#!/usr/bin/env bash
# What our part costs: seconds inside our hooks, all the machinery with nothing saved (--keep-all), counts rounded to 32 rows,
# and a profile of one pruned prefill in out/ (for ui.perfetto.dev).
#   bash runs/overhead.sh [shipped] [onevision] [onevision-fp32]     without a name: all; what is measured already is skipped
# On two idle cores: shipped 1 minute, onevision 3, onevision-fp32 3. 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh
mkdir -p out

shipped() {
    ROUNDS=15 measure overhead-shipped --model atp-mini-llava --budget 0.6 --batch 1,16 --answer-tokens 4 --compare none --keep-all \
        --round-to 32 --trace out/shipped.json
}
onevision() {
    ROUNDS=${ROUNDS:-3} measure overhead-onevision-bf16 --arch llava-onevision-0.5b --tiles 2 --dtype bf16 --budget 0.6 --answer-tokens 16 \
        --compare none --keep-all --round-to 32 --trace out/onevision-bf16.json
}
onevision-fp32() {
    ROUNDS=${ROUNDS:-3} measure overhead-onevision-fp32 --arch llava-onevision-0.5b --tiles 2 --dtype fp32 --budget 0.6 --answer-tokens 4 \
        --compare none --keep-all --round-to 32
}

parts "1 shipped" "3 onevision" "3 onevision-fp32" -- "$@"
