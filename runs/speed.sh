#!/usr/bin/env bash
# The tables of speed: true sizes, random weights, both sides and `resize` in turn in one process. Nothing is downloaded.
#   bash runs/speed.sh [PART ...]     without a name: all, the most telling first; what is measured already is skipped, FORCE=1 measures it
#   again. The parts and their minutes on two idle cores with bfloat16 units stand at the end. Needs 12 GB (blip2 in float32).
# Never beside a busy core: two threads that wait for each other are many times slower than one.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh
export ROUNDS="${ROUNDS:-3}" # runs of seconds spread by one percent; the shipped model's by more

onevision() { # a photo's five tiles, so that `resize` has fewer to go to
    measure speed-onevision-bf16 --arch llava-onevision-0.5b --dtype bf16 --budget 0.6,0.4 --answer-tokens 3,20
}
onevision-batch4() {
    measure speed-onevision-bf16-batch4 --arch llava-onevision-0.5b --dtype bf16 --budget 0.6,0.4 --batch 4 --answer-tokens 20
}
blip2() {
    measure speed-blip2-bf16 --arch blip2-opt-2.7b --depth 0.5 --dtype bf16 --budget 0.6,0.4 --answer-tokens 3,20
}
blip2-batch4() {
    measure speed-blip2-bf16-batch4 --arch blip2-opt-2.7b --depth 0.5 --dtype bf16 --budget 0.6,0.4 --batch 4 --answer-tokens 20
}
smolvlm-batch4() { # small images
    measure speed-smolvlm-bf16-batch4 --arch smolvlm-256m --tiles 5 --dtype bf16 --budget 0.6,0.4 --batch 4 --answer-tokens 20
}
tiles() { # half of a photo's tiles leave before the tower runs, patches of the others in it
    measure speed-smolvlm-bf16-tiles --arch smolvlm-256m --dtype bf16 --budget 0.6,0.4 --keep-tiles 0.5 --answer-tokens 3
}
tiles-onevision() {
    measure speed-onevision-bf16-tiles --arch llava-onevision-0.5b --dtype bf16 --budget 0.6,0.4 --keep-tiles 0.5 --answer-tokens 3
}
qwen() { # half of the depth, an image of 896 x 896 pixels; with half of its windows of one token each, too
    measure speed-qwen2-bf16 --arch qwen2-vl-2b --depth 0.5 --dtype bf16 --budget 0.6,0.4 --answer-tokens 3
    measure speed-qwen2-bf16-windows --arch qwen2-vl-2b --depth 0.5 --dtype bf16 --budget 0.6,0.4 --keep-tiles 0.5 --answer-tokens 3
}
smolvlm() { measure speed-smolvlm-bf16 --arch smolvlm-256m --dtype bf16 --budget 0.6,0.4 --answer-tokens 3,20; }
smolvlm-fp32() { measure speed-smolvlm-fp32 --arch smolvlm-256m --tiles 5 --dtype fp32 --budget 0.6,0.4 --answer-tokens 3; }
blip2-fp32() { measure speed-blip2-fp32 --arch blip2-opt-2.7b --depth 0.5 --dtype fp32 --budget 0.6,0.4 --answer-tokens 3; }
onevision-fp32() {
    measure speed-onevision-fp32 --arch llava-onevision-0.5b --dtype fp32 --budget 0.6,0.4 --answer-tokens 3
}
shipped() { ROUNDS=15 measure speed-shipped --model atp-mini-llava --budget 0.6,0.4 --batch 1,4,16 --answer-tokens 1,4; }
shipped-others() {
    ROUNDS=15 measure speed-shipped-flamingo --model atp-mini-flamingo --budget 0.6,0.4 --batch 1,4,16 --answer-tokens 4
    ROUNDS=15 measure speed-shipped-blip2 --model atp-mini-blip2 --budget 0.6,0.4 --batch 1,4,16 --answer-tokens 4
}

parts "3 shipped" "2 shipped-others" "5 onevision" "4 onevision-batch4" "4 blip2" "3 blip2-batch4" "3 smolvlm-batch4" "2 tiles" "2 tiles-onevision" "6 qwen" "5 smolvlm" "2 blip2-fp32" \
    "3 onevision-fp32" "3 smolvlm-fp32" -- "$@"
