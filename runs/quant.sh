#!/usr/bin/env bash
# Weights in int8 by torchao, pruned and not, in turn in one process; and the accuracy of the four on the shipped model.
# Needs: pip install 'atp-vlm[quant]'. About 8 minutes on two idle cores, 6 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh

ROUNDS=10 measure quant-shipped --model atp-mini-llava --quant int8 --compare none --budget 0.6 --batch 1,16 --answer-tokens 4
ROUNDS=3 measure quant-onevision-bf16 --arch llava-onevision-0.5b --tiles 2 --dtype bf16 --quant int8 --compare none --budget 0.6 \
    --answer-tokens 20
"$python" runs/quant.py --out "$out/quant-shipped/accuracy.json"
"$python" runs/performance.py
