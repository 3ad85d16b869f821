#!/usr/bin/env bash
# The table of speed-ups: true sizes, random weights, both sides in turn in one process. Nothing is downloaded.
# Run it on an otherwise idle machine; two threads beside a busy core are many times slower than one.
# THREADS=2 ROUNDS=5 OUT=out/bench bash runs/bench.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src OMP_NUM_THREADS="${THREADS:=2}"
python="${PYTHON:-python}" out="${OUT:-out/bench}" rounds="${ROUNDS:-5}"

measure() { # name, then options of `atp bench`
    local name=$1
    shift
    mkdir -p "$out/$name"
    "$python" -m atp bench --threads "$THREADS" --rounds "$rounds" --out "$out/$name" "$@" | tee "$out/$name/bench.txt"
}

measure smolvlm-256m --arch smolvlm-256m --method atp,random --budget 0.6,0.4 --answer-tokens 3,20
measure llava-onevision-0.5b --arch llava-onevision-0.5b --tiles 3 --method atp,random --budget 0.6,0.4 --answer-tokens 3,20
measure shipped --model atp-mini-llava --method atp,resize --budget 0.6 --batch 1,16 --answer-tokens 4 --rounds 15
