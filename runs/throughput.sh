#!/usr/bin/env bash
# Answers a second over a queue, at equal batch and at equal memory: unpruned, fixed counts, counts per input as requests come, with
# pictures alike in a batch, and capped.
#   bash runs/throughput.sh [shipped] [smolvlm]     without a name: both; what is measured already is skipped, FORCE=1 measures it anew
# On two idle cores: shipped 3 minutes, smolvlm (half of its layers, bfloat16) 5. 4 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh

shipped() { into throughput-shipped throughput.json "$python" runs/throughput.py --queue 128 --batch 16 --answer 4 --rounds "${ROUNDS:-7}"; }
smolvlm() {
    into throughput-smolvlm throughput.json "$python" runs/throughput.py --arch smolvlm-256m --depth 0.5 --queue 32 --batch 16 --answer 8 --rounds "${ROUNDS:-3}"
}

parts "3 shipped" "5 smolvlm" -- "$@"
