#!/usr/bin/env bash
# Time against visual tokens, 196 to 10,000, unpruned and pruned. About 3 minutes on two idle cores with bfloat16 units, 3 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/measure.sh

"$python" runs/growth.py --threads "$THREADS" --rounds "${ROUNDS:-3}" --out "$out/growth"
"$python" runs/performance.py
