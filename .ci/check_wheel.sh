#!/usr/bin/env bash
# Imports the wheel from a clean environment, away from the checkout: check_wheel.sh WHEEL ENVIRONMENT
#
# Makes ENVIRONMENT, a folder that must not exist, and leaves it behind with the wheel installed.
set -euo pipefail
wheel=$(realpath "$1") environment=$2 checkout=$PWD
.venv/bin/python -m venv "$environment"
python=$(realpath -s "$environment")/bin/python
"$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$wheel"

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
git ls-files datasets flexunet pipelines tools > "$elsewhere/tracked"
cd "$elsewhere"
"$python" - "$checkout" tracked <<'PYTHON'
import importlib.metadata, pathlib, subprocess, sys

checkout, tracked = map(pathlib.Path, sys.argv[1:])
distribution = importlib.metadata.distribution("flexunet")
files = {path.as_posix() for path in distribution.files if ".." not in path.parts}

tops = {path.split("/")[0] for path in files}
extra = {top for top in tops if top != "flexunet" and not top.endswith(".dist-info")}
if extra:
  sys.exit(f"the wheel installs more than the name flexunet: {extra}")

# Sources, templates, presets, licences and citations: all but the checkout's own scripts, tools/*.sh.
wanted = {path if path.startswith("flexunet/") else f"flexunet/{path}"
          for path in tracked.read_text().split("\n")
          if path and not (path.endswith(".sh") and path.count("/") == 1)}
found = {path for path in files if path.startswith("flexunet/") and not path.endswith(".pyc")}
if found != wanted:
  sys.exit(f"the wheel lacks {sorted(wanted - found)} and holds {sorted(found - wanted)} too: see"
           " packages and package_data in setup.cfg")

import flexunet

if pathlib.Path(flexunet.__file__).is_relative_to(checkout):
  sys.exit(f"imported from {flexunet.__file__}, not from the wheel")
model = flexunet.build_model(image_size=(32, 32), image_channels=1, num_classes=2, num_layers=2)

programs = distribution.entry_points.select(group="console_scripts").names
for program in sorted(programs):
  done = subprocess.run(
      [pathlib.Path(sys.executable).parent / program, "--help"], capture_output=True, text=True)
  if done.returncode or "flexunet" not in done.stdout:
    sys.exit(f"{program} --help: exit code {done.returncode}\n{done.stdout}{done.stderr}")
print(f"wheel ok: {flexunet.__version__}, {model.count_params()} parameters,", *sorted(programs))
PYTHON
