#!/usr/bin/env bash
# Runs the tests, from nothing: bash tools/test.sh [arguments of pytest, e.g. -m slow]
# One process per core, at most four; -n 0 runs them in one.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare_environment test
exec "$PYTHON" -m pytest -n auto --maxprocesses=4 --dist=loadfile "$@"
