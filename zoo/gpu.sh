#!/usr/bin/env bash
# Train a backbone on a GPU machine in legs: zoo/gpu.sh BACKBONE [MINUTES OF THIS LEG]
#
# Runs vision -> language -> joint (a quarter captions) from where the last leg stopped, for at most MINUTES (default 8.5), then
# copies slim checkpoints, logs and an evaluation to $OUT. Call it again until it prints "finished" (exit 0; 75: more to do).
# On a fresh machine put the slim checkpoints of the last leg into zoo/carried/ (CARRIED), and it goes on from them.
# MINUTES_VISION, MINUTES_LANGUAGE, MINUTES_JOINT: length of the stages. DEVICE=cpu TRAIN="--eager --steps 2": a dry run.
set -euo pipefail
cd "$(dirname "$0")/.."
backbone=${1:?usage: zoo/gpu.sh llava|blip2|flamingo [MINUTES]}
leg=${2:-8.5}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
runs=${ATP_ZOO_RUNS:-zoo/runs}
carried=${CARRIED:-zoo/carried}
out=${OUT:-out/zoo}
export ATP_ZOO_RUNS=$runs PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
prefix=$([ "$backbone" = llava ] || echo "$backbone-")
declare -A minutes=([vision]=${MINUTES_VISION:-4} [language]=${MINUTES_LANGUAGE:-13} [joint]=${MINUTES_JOINT:-7})
begin=$SECONDS
mkdir -p "$runs" "$out"

for stage in vision language joint; do
  name=$prefix$stage.pt
  [ -e "$runs/$name" ] || [ ! -e "$carried/$name" ] || cp "$carried/$name" "$runs/$name"
done

stages="vision language joint"
[ ! -e "$runs/${prefix}language.pt" ] || stages="language joint"
[ ! -e "$runs/${prefix}joint.pt" ] || stages="joint"
status=0
for stage in $stages; do
  left=$(awk "BEGIN { print $leg - ($SECONDS - $begin) / 60 }")
  if awk "BEGIN { exit !($left < 0.3) }"; then status=75; break; fi
  # shellcheck disable=SC2086
  $python zoo/train.py $stage --backbone "$backbone" --device "$device" --minutes "${minutes[$stage]}" --leg "$left" \
    --captions-every 4 ${TRAIN:-} || status=$?
  last=$stage
  [ $status -eq 0 ] || break
done

if [ -n "${last:-}" ]; then
  $python zoo/evaluate.py "$last" --backbone "$backbone" --device "$device" --questions "${QUESTIONS:-1000}" | tee "$out/$prefix$last.txt" || true
fi
for stage in vision language joint; do # only what the next leg needs: the latest checkpoint
  [ ! -e "$runs/$prefix$stage.jsonl" ] || cp "$runs/$prefix$stage.jsonl" "$out/"
done
[ -z "${last:-}" ] || $python zoo/export.py "$last" --backbone "$backbone" --slim "$out/$prefix$last.pt"
[ $status -eq 0 ] && echo "finished" || echo "more to do: call it again (status $status)"
exit $status
