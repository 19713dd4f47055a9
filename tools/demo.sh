#!/usr/bin/env bash
# Runs the main job on generated data: raw scans -> records -> training -> figures -> masks -> report.
#
#   bash tools/demo.sh [--short] [FOLDER]
#
# FOLDER (default demo_output) must not exist. --short trains for a moment only, to see that all
# parts work together.
set -euo pipefail
caller=$PWD
source "$(dirname "$0")/environment.sh"

minutes=2.5 subjects=16 folder=""
for argument in "$@"; do
  case "$argument" in
    --short) minutes=0.5 subjects=8 ;;
    -*) echo "error: unknown option $argument; see the head of tools/demo.sh" >&2; exit 1 ;;
    *) folder=$argument ;;
  esac
done
folder=${folder:-$PWD/demo_output}
case "$folder" in /*) ;; *) folder="$caller/$folder" ;; esac
if [ -e "$folder" ]; then
  echo "error: $folder exists already. Name another folder: bash tools/demo.sh FOLDER" >&2
  exit 1
fi
prepare_environment test

step() { printf '\n== %s\n' "$*"; }
flexunet() { "$PYTHON" -m flexunet "$@"; }

step "1. Raw scans of $subjects phantom subjects, in the layout of a published dataset"
flexunet phantom hippocampus_t1w "$folder/raw" --subjects=$subjects --seed=1

step "2. Records: flexunet build"
flexunet build hippocampus_t1w --manual_dir="$folder/raw" --data_dir="$folder/data"

step "3. Training for $minutes minutes: flexunet train"
flexunet train --dataset=hippocampus_t1w --data_dir="$folder/data" --run_dir="$folder/run" \
  --max_minutes=$minutes

step "4. Scores on held-out subjects: flexunet evaluate"
flexunet evaluate --run_dir="$folder/run" --split=test

step "5. Masks for scans without labels: flexunet predict"
flexunet predict --run_dir="$folder/run" --input="$folder/raw/Test" --output_dir="$folder/masks"

step "Done. Open $folder/run/report.html; the masks lie in $folder/masks."
