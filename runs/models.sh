# Sourced by the scripts of the tables: the models, the scenes, and `atp eval` over all of them, in parts and resumable.
# Each variable can be set from outside; DRY=1 asks a handful of items and leaves docs/ alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${THREADS:-1}"
python="${PYTHON:-python}"
MODELS="${MODELS:-atp-mini-llava atp-mini-blip2 atp-mini-flamingo}" # shipped names, or folders
JOBS="${JOBS:-2}"                                                  # processes; 1 on a GPU
SPLIT="${SPLIT:-val}"
DOCS="${DOCS:-docs/results}"
if [ "${DRY:-0}" = 1 ]; then
    SCENES=24 LIMIT=6 ITEMS=6 OUT="${OUT:-out/dry}" DOCS="${OUT}/docs"
fi
OUT="${OUT:-out/results}"

pids=() # parts that run
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
present=()
for model in $MODELS; do
    if [ -f "src/atp/models/$model/config.json" ] || [ -f "$model/config.json" ]; then
        present+=("$model")
    else
        echo "SKIPPED: the model $model is neither in src/atp/models nor a folder; its rows will be missing from the page" >&2
    fi
done
[ "${#present[@]}" -gt 0 ] || { echo "none of the models is there: $MODELS" >&2; exit 1; }
mkdir -p "$OUT" "$DOCS"

all_methods() { # comma-separated, atp first; those that need a file of their own are left out by `atp eval`, aloud
    "$python" -c 'import atp; print(",".join(["atp", *(m for m in atp.list_methods() if m not in ("atp", "none"))]))'
}

drawn() { # the folder with $1 scenes in the official schemas, written once
    local folder="$OUT/scenes-$SPLIT-$1"
    if [ ! -d "$folder" ]; then
        rm -rf "$folder.part"
        "$python" -m atp.scenes "$folder.part" --images "$1" --split "$SPLIT" >&2
        mv "$folder.part" "$folder"
    fi
    echo "$folder"
}

evaluate() { # model, folder of records, then options of `atp eval`; the same call goes on after a kill
    local model=$1 out=$2 part words failed=0
    shift 2
    mkdir -p "$out"
    pids=()
    for ((part = 1; part <= JOBS; part++)); do
        words=(-m atp eval --model "$model" --out "$out" --shard "$part/$JOBS" "$@")
        if [ "$part" = 1 ]; then # its bar is shown
            "$python" "${words[@]}" >"$out/part-1.log" &
        else
            "$python" "${words[@]}" >"$out/part-$part.log" 2>"$out/part-$part.bar" &
        fi
        pids+=($!)
    done
    for part in "${!pids[@]}"; do
        wait "${pids[$part]}" && continue
        failed=1
        [ "$part" = 0 ] || tail -n 5 "$out/part-$((part + 1)).bar" >&2
    done
    pids=()
    [ "$failed" = 0 ] || { echo "$model: a part failed, see above; run the same command to go on" >&2; exit 1; }
    "$python" -m atp report "$out" >"$out/report.txt"
}

each_model() { # name of the table, then options of `atp eval`; sets `found` to the folders of the records
    local table=$1 model
    shift
    found=()
    for model in "${present[@]}"; do
        echo "== $table: $model" >&2
        evaluate "$model" "$OUT/$table/$(basename "$model")" --split "$SPLIT" "$@"
        found+=("$OUT/$table/$(basename "$model")")
    done
}
