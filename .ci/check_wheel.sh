#!/usr/bin/env bash
# Imports the wheel from a clean virtual environment, away from the checkout: check_wheel.sh WHEEL SCRATCH
set -euo pipefail
wheel=$1 scratch=$2
constraints="$PWD/constraints.txt"
.venv/bin/python -m venv "$scratch/clean"
"$scratch/clean/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" "$wheel"
cd "$scratch"
clean/bin/python - <<'PYTHON'
import importlib.metadata, pathlib, sys
tops = {p.parts[0] for p in importlib.metadata.files("flexunet") if ".." not in p.parts}
extra = {t for t in tops if t != "flexunet" and not t.endswith(".dist-info")}
if extra:
  sys.exit(f"the wheel installs more than the name flexunet: {extra}")
import flexunet
from flexunet.datasets import catalog, volume_io  # noqa: F401
from flexunet.pipelines import batches  # noqa: F401
from flexunet.tools import build  # noqa: F401
if "site-packages" not in flexunet.__file__:
  sys.exit(f"imported from {flexunet.__file__}, not from the wheel")
model = flexunet.build_model(image_size=(32, 32), image_channels=1, num_classes=2, num_layers=2)
print("wheel ok:", flexunet.__version__, model.count_params(), "parameters")
PYTHON
for program in flexunet-build flexunet-train flexunet-evaluate flexunet-predict; do
  clean/bin/$program --helpshort > help.txt 2>&1 || true
  grep -q "flags" help.txt || { echo "$program --helpshort shows no flags"; cat help.txt; exit 1; }
done
