# Sourced by the scripts that measure: one `atp bench` or script into docs/results/performance/NAME, unless it is there already.
# THREADS=2 ROUNDS=5 OUT=docs/results/performance PYTHON=python; FORCE=1 measures again what is there
export PYTHONPATH=src OMP_NUM_THREADS="${THREADS:=2}"
python="${PYTHON:-python}" out="${OUT:-docs/results/performance}"

into() { # name, file, command...: run it unless its file is whole; what does not fit into this machine is left out aloud
    local name=$1 file=$2 status=0
    shift 2
    if [ -z "${FORCE:-}" ] && "$python" runs/whole.py "$out/$name/$file"; then
        echo "there already: $out/$name (FORCE=1 measures it again)" >&2
        return 0
    fi
    "$@" --threads "$THREADS" --out "$out/$name" || status=$?
    [ "$status" = 2 ] && echo "left out: $name" >&2 && return 0
    return "$status"
}

measure() { # name, then options of `atp bench`
    local name=$1
    shift
    into "$name" bench.json "$python" -m atp bench --rounds "${ROUNDS:-5}" "$@"
}

parts() { # "MINUTES NAME" ..., --, the names asked for: run them in that order, or all, saying how much is left
    local known=() names=() left=0 each one
    declare -A minutes=()
    while [ "$1" != -- ]; do known+=("${1#* }"); minutes[${1#* }]=${1% *}; shift; done
    shift
    names=("${@:-${known[@]}}")
    for each in "${names[@]}"; do
        [ -n "${minutes[$each]:-}" ] || { echo "no part $each; known: ${known[*]}" >&2; return 2; }
        left=$((left + minutes[$each]))
    done
    for each in "${names[@]}"; do
        echo "$(date +%H:%M) $each: about ${minutes[$each]} of the $left minutes that are left on two idle cores" >&2
        "$each"
        left=$((left - minutes[$each]))
        [ -n "${OUT:-}" ] || "$python" runs/performance.py
    done
}
