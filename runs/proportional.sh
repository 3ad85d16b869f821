#!/usr/bin/env bash
# What it is worth that a merged patch counts for the patches it stands for: docs/results/proportional/accuracy.md.
# atp and tome with and without (tome:proportional=tower is what its authors do), and tome with all that is new in atp's merging:
# the weights in the language model, and merging before the first layer. About 8 minutes on two idle cores.
ALL="atp,atp:proportional=false,tome,tome:proportional=none,tome:proportional=all,tome:proportional=all+embeddings=true"
MODELS="${MODELS:-atp-mini-llava}" METHODS="${METHODS:-$ALL}" \
    BUDGETS="${BUDGETS:-1.0,0.6,0.4,0.25}" LIMIT="${LIMIT:-200}" OUT="${OUT:-out/results/proportional}" \
    DOCS="${DOCS:-docs/results/proportional}" exec bash "$(dirname "$0")/accuracy.sh"
