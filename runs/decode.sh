#!/usr/bin/env bash
# Decoding: what a step costs after long prompts, bytes of keys and values; what our hooks do in a step, counted; and a fixed plan under
# torch.compile, whose Inductor takes minutes to compile (g++ is needed).
#   bash runs/decode.sh [steps] [llava] [heads] [smolvlm] [compile]     without a name: all; what is measured already is skipped
# On two idle cores with bfloat16 units: steps 1 minute, llava 3, heads 2, smolvlm 3, compile 13. 4 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh

steps() { into decode-steps steps.json "$python" runs/decode.py --no-compile; }
llava() { # few key heads, as in Qwen2-0.5B
    into decode-llava bench.json "$python" runs/growth.py --sides 24,50,70 --answer 33 --rounds "${ROUNDS:-3}"
}
heads() { # a key head for each query head, as in LLaVA-1.5; four prompts read the weights once and their own keys each
    into decode-heads bench.json "$python" runs/growth.py --sides 24,50 --answer 33 --batch 4 --heads 14 --rounds "${ROUNDS:-3}"
}
smolvlm() {
    ROUNDS=${ROUNDS:-3} measure decode-smolvlm --arch smolvlm-256m --dtype bf16 --budget 0.6,0.4 --compare none --answer-tokens 65
}
compile() { into decode-compile steps.json "$python" runs/decode.py --compile; }

parts "1 steps" "3 llava" "2 heads" "3 smolvlm" "13 compile" -- "$@"
