#!/usr/bin/env bash
# Runs the tests, from nothing: bash tools/test.sh [arguments of pytest, e.g. -m slow]
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare_environment test
exec "$PYTHON" -m pytest "$@"
