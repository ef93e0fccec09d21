#!/usr/bin/env bash
# Trains the embedded model: bash training/train.sh PYTHON RUN_FOLDER [FINISHED_MODEL [OUT]]
# With a finished model's folder (such as t2vcli/demo) it goes on from that, without it from nothing. Every stage resumes
# from its checkpoint in the run folder, so the command can be given again after an interruption, kill -9 included.
# SCALE shrinks every stage, for a trial: SCALE=0.001 takes a minute or two and learns nothing.
set -euo pipefail
python=${1:-python}
run=${2:-training/run}
init=${3:-}
out=${4:-t2vcli/demo}
workers=${WORKERS:-2}
steps() { "$python" -c "print(max(2, int($1 * ${SCALE:-1})))"; }
few() { "$python" -c "print(max(4, int($1 * min(1, 10 * ${SCALE:-1}))))"; }

from=()
if [ -n "$init" ]; then
  from=(--init "$init")
else
  "$python" -m training.train_vae --out "$run" --steps "$(steps 5000)" --workers "$workers"
  "$python" -m training.train_unet words --run "$run" --steps "$(steps 400)" --workers "$workers"
  for stage in "images 1700 48" "clips 2000 12"; do
    read -r name count batch <<< "$stage"
    "$python" -m training.train_unet "$name" --run "$run" --steps "$(steps "$count")" --batch "$batch" \
      --first-clips "$(few 2000)" --check-clips "$(few 16)" --workers "$workers"
  done
fi
"$python" -m training.train_unet steady --run "$run" "${from[@]}" --steps "$(steps 9000)" \
  --first-clips "$(few 1000)" --check-clips "$(few 16)" --workers "$workers"
"$python" -m training.train_decoder --run "$run" "${from[@]}" --steps "$(steps 5000)" --first-clips "$(few 700)" --workers "$workers"
"$python" -m training.export --run "$run" --out "$run/base"
"$python" -m training.train_upscaler --run "$run" --base "$run/base" --steps "$(steps 6000)" \
  --first-clips "$(few 80)" --check-clips "$(few 8)" --workers "$workers"
"$python" -m training.export --run "$run" --out "$out"
