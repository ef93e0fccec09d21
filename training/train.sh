#!/usr/bin/env bash
# Trains the embedded model from nothing: bash training/train.sh PYTHON RUN_FOLDER
# Every stage resumes from its checkpoint in the run folder, so the command can be given again after an interruption.
set -euo pipefail
python=${1:-python}
run=${2:-training/run}
"$python" -m training.train_vae --out "$run" --steps 5000
[ -f "$run/latents-64-0.pt" ] || "$python" -m training.train_unet cache --run "$run" --clips 6000
[ -f "$run/latents-128-0.pt" ] || "$python" -m training.train_unet cache --run "$run" --clips 400 --size 128
"$python" -m training.train_unet words --run "$run" --steps 400
"$python" -m training.train_unet images --run "$run" --steps 1700 --batch 48
"$python" -m training.train_unet clips --run "$run" --steps 3500 --batch 12 --lr 1e-3
"$python" -m training.export --run "$run"
