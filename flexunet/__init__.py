"""FlexUNet: from raw brain scans to a segmentation one can trust.

    import flexunet

    run = flexunet.fit("RUN", dataset="hippocampus_t1w", data_dir="DATA", max_minutes=5.0)
    label = run.predict("scan.nii.gz")  # uint8, on the voxel grid of the scan

`build_dataset`, `open_dataset`, `open_records`, `plan`, `fit`, `cross_validate`, `load`,
`build_model`, `losses` and `metrics` are described where they are defined. The programs are
`flexunet COMMAND`.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import platform
import types
from typing import Any

try:
  import wrapt
except ImportError:  # Readers of records do without it, and without Keras, to which it serves.
  wrapt = None  # type: ignore[assignment]

__version__ = "0.1.0"

# In a checkout the sibling folders (datasets/, pipelines/, tools/) lie beside this one. In a
# wheel setup.cfg has mapped them inside. setup.cfg itself shows which of the two this is.
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "setup.cfg").is_file() and (_CHECKOUT / "datasets").is_dir():
  __path__.append(str(_CHECKOUT))

# On Linux TensorFlow computes convolutions by oneDNN of itself only where a processor has VNNI, AMX
# or AVX-512 BF16; on one with AVX2 a training step takes 1.4 to 1.7 times as long without it.
# TensorFlow reads the variable once, at its first operation. Whoever has set it is obeyed.
if platform.machine() in ("x86_64", "AMD64"):
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Public name -> (module, attribute; None for the module itself), imported on first use: `import
# flexunet` must not load TensorFlow.
_PUBLIC = {
    "build_dataset": ("flexunet.datasets.builder.build_tool", "build_dataset"),
    "build_model": ("flexunet.network.model", "build_model"),
    "cross_validate": ("flexunet.library", "cross_validate"),
    "fit": ("flexunet.library", "fit"),
    "load": ("flexunet.library", "load"),
    "losses": ("flexunet.objectives.losses", None),
    "metrics": ("flexunet.objectives.metrics", None),
    "open_dataset": ("flexunet.dataset_access", "open_dataset"),
    "open_records": ("flexunet.records", "open_records"),
    "plan": ("flexunet.library", "plan"),
}


def _register_layers(keras: types.ModuleType) -> None:
  """Registers the project's layers with Keras, so that it can read a run's model.keras."""
  del keras
  importlib.import_module("flexunet.network.layers")


if wrapt is not None:
  wrapt.when_imported("keras")(_register_layers)


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f"module 'flexunet' has no attribute {name!r}")
  module_name, attribute = _PUBLIC[name]
  module = importlib.import_module(module_name)
  return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
