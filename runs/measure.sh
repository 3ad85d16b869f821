# Sourced by the scripts that measure: one `atp bench` into docs/results/performance/NAME.
# THREADS=2 ROUNDS=5 OUT=docs/results/performance PYTHON=python
export PYTHONPATH=src OMP_NUM_THREADS="${THREADS:=2}"
python="${PYTHON:-python}" out="${OUT:-docs/results/performance}"

measure() { # name, then options of `atp bench`; what does not fit into this machine is left out aloud
    local name=$1 status=0
    shift
    "$python" -m atp bench --threads "$THREADS" --rounds "${ROUNDS:-5}" --out "$out/$name" "$@" || status=$?
    [ "$status" = 2 ] && echo "left out: $name" >&2 && return 0
    return "$status"
}
