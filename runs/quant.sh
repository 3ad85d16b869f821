#!/usr/bin/env bash
# Weights in int8 and int4 by torchao, pruned and not, in turn in one process; and the accuracy of all on the shipped model.
#   bash runs/quant.sh [shipped] [accuracy] [onevision] [blip2-int4] [onevision-int4]     without a name: all; what is there is skipped
# torchao may replace nothing that is installed, so it gets an environment of its own that also sees the packages of this one:
#   python -m venv build/quant && build/quant/bin/pip install --no-deps torchao
#   python -c "import site; print(site.getsitepackages()[0])" > "$(echo build/quant/lib/python3*/site-packages)/beside.pth"
#   PYTHON=build/quant/bin/python bash runs/quant.sh
# On two idle cores: shipped 1 minute, accuracy 5, onevision 4, blip2-int4 4, onevision-int4 4. 8 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh
"$python" -c "import torchao" 2>/dev/null || { echo "torchao is missing in $python; see the head of runs/quant.sh" >&2; exit 2; }

shipped() {
    ROUNDS=10 measure quant-shipped --model atp-mini-llava --quant int8 --compare none --budget 0.6 --batch 1,16 --answer-tokens 4
}
accuracy() {
    local kind file
    for kind in int8 int4; do
        file="$out/quant-shipped$([ "$kind" = int8 ] || echo "-$kind")/accuracy.json"
        [ -z "${FORCE:-}" ] && "$python" runs/whole.py "$file" || "$python" runs/quant.py --quant "$kind" --out "$file"
    done
}
blip2-int4() {
    ROUNDS=${ROUNDS:-3} measure quant-blip2-int4 --arch blip2-opt-2.7b --depth 0.5 --dtype bf16 --quant int4 --compare none --budget 0.6,0.4 \
        --answer-tokens 3,20
}
onevision-int4() {
    ROUNDS=${ROUNDS:-3} measure quant-onevision-int4 --arch llava-onevision-0.5b --tiles 2 --dtype bf16 --quant int4 --compare none \
        --budget 0.6,0.4 --answer-tokens 20
}
onevision() {
    ROUNDS=${ROUNDS:-3} measure quant-onevision-bf16 --arch llava-onevision-0.5b --tiles 2 --dtype bf16 --quant int8 --compare none \
        --budget 0.6 --answer-tokens 20
}

parts "1 shipped" "5 accuracy" "4 onevision" "4 blip2-int4" "4 onevision-int4" -- "$@"
