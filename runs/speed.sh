#!/usr/bin/env bash
# The tables of speed: true sizes, random weights, both sides and `resize` in turn in one process. Nothing is downloaded.
#   bash runs/speed.sh [onevision] [smolvlm] [blip2] [onevision-fp32] [shipped]     without a name: all of them
# On two idle cores with bfloat16 units: onevision 8 minutes, smolvlm 9, blip2 8, onevision-fp32 4, shipped 2. Needs 12 GB
# (blip2 in float32). Never beside a busy core: two threads that wait for each other are many times slower than one.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh

onevision() { # a photo's five tiles, so that `resize` has fewer to go to; a batch of small images
    ROUNDS=3 measure speed-onevision-bf16 --arch llava-onevision-0.5b --dtype bf16 --budget 0.6,0.4 --answer-tokens 3,20
    ROUNDS=3 measure speed-onevision-bf16-batch4 --arch llava-onevision-0.5b --tiles 2 --dtype bf16 --budget 0.6,0.4 \
        --batch 4 --answer-tokens 20
}
smolvlm() {
    ROUNDS=3 measure speed-smolvlm-bf16 --arch smolvlm-256m --dtype bf16 --budget 0.6,0.4 --answer-tokens 3,20
    ROUNDS=3 measure speed-smolvlm-bf16-batch4 --arch smolvlm-256m --dtype bf16 --budget 0.6 --batch 4 --answer-tokens 20
    ROUNDS=3 measure speed-smolvlm-fp32 --arch smolvlm-256m --dtype fp32 --budget 0.6 --answer-tokens 3
}
blip2() { # 0.4 is below what its tower, Q-Former and text leave
    measure speed-blip2-bf16 --arch blip2-opt-2.7b --depth 0.5 --dtype bf16 --budget 0.6,0.5 --answer-tokens 3,20
    ROUNDS=3 measure speed-blip2-bf16-batch4 --arch blip2-opt-2.7b --depth 0.5 --dtype bf16 --budget 0.6,0.5 --batch 4 \
        --answer-tokens 20
    ROUNDS=3 measure speed-blip2-fp32 --arch blip2-opt-2.7b --depth 0.5 --dtype fp32 --budget 0.6,0.5 --answer-tokens 3
}
onevision-fp32() {
    ROUNDS=3 measure speed-onevision-fp32 --arch llava-onevision-0.5b --tiles 2 --dtype fp32 --budget 0.6,0.4 --answer-tokens 3,20
}
shipped() {
    ROUNDS=15 measure speed-shipped --model atp-mini-llava --budget 0.6 --batch 1,4,16 --answer-tokens 1,4
}

for part in ${@:-onevision smolvlm blip2 onevision-fp32 shipped}; do "$part"; done
"$python" runs/performance.py
