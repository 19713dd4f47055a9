# Sourced by demo.sh and test.sh: sets PYTHON to an environment that holds the package.
#
# An existing .venv is taken; without one it is made. What it must hold is pinned by
# constraints.txt; when setup.cfg or that file has changed, it is brought up to date.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# Where this is set, each of many short programs would compile the package anew.
unset PYTHONDONTWRITEBYTECODE

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
        2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.10 to 3.13 with the venv module is needed. Install one, or set PYTHON." >&2
  return 1
}

prepare_environment() {
  local python stamp wanted
  wanted=$(cat setup.cfg constraints.txt | cksum)
  stamp=.venv/.flexunet-installed
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version) ..." >&2
    "$python" -m venv .venv || exit 1
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing the package and what it needs (about two minutes, 3 GB) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".[$1]" || exit 1
    echo "$wanted" > "$stamp"
  fi
  PYTHON="$PWD/.venv/bin/python"
  # Start-up lines of TensorFlow say nothing a user can act on.
  export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
}
