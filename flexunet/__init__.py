"""FlexUNet: from raw brain scans to a segmentation one can trust.

`flexunet.build_model` makes the network; the programs are `python -m flexunet.train`,
`flexunet.evaluate`, `flexunet.predict` and `flexunet.tools.build`.
"""

from __future__ import annotations

import importlib
import pathlib

__version__ = "0.1.0"

# In a checkout the sibling folders (datasets/, pipelines/, tools/) lie beside this one. In a
# wheel setup.cfg has mapped them inside. setup.cfg itself tells which of the two this is.
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
if (_CHECKOUT / "setup.cfg").is_file() and (_CHECKOUT / "datasets").is_dir():
  __path__.append(str(_CHECKOUT))

# Public names, imported on first use: `import flexunet` must not load TensorFlow.
_PUBLIC = {"build_model": "flexunet.network.model"}


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f"module 'flexunet' has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_PUBLIC])
