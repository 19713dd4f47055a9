"""Builders of other people: from a file or folder that the user names, or an installed package.

Only code that was asked for by its path or its name is run; listing what is installed runs none.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import pathlib
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from flexunet.core.errors import InputError

if TYPE_CHECKING:
  from flexunet.datasets.builder.segmentation_builder import SegmentationBuilder

# A package offers its builders here: NAME = "package.module" or "package.module:Builder".
ENTRY_POINT_GROUP = "flexunet.datasets"
_SUFFIX = "_dataset_builder"
_CLASS = "Builder"
_PAGE = "datasets/builder/README.md shows one of 25 lines"


def installed() -> dict[str, importlib.metadata.EntryPoint]:
  """Returns {dataset: entry point} of the packages that offer builders; imports none of them."""
  found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
  return {point.name: point for point in found}


def load_installed(point: importlib.metadata.EntryPoint) -> type[SegmentationBuilder]:
  """Imports the builder that a package offers.

  Raises:
    InputError: Its import fails, or it is no builder of that name.
  """
  where = f"Entry point {point.name} = {point.value} of group {ENTRY_POINT_GROUP}"
  try:
    loaded = point.load()
  except Exception as error:
    raise InputError(f"{where}: its import fails: {_one_line(error)}.") from error
  found = getattr(loaded, _CLASS, None) if isinstance(loaded, types.ModuleType) else loaded
  builder = _checked(found, where)
  if builder.name != point.name:
    raise InputError(
        f"{where}: the name must be that of its builder, {builder.name}. Rename the entry point in"
        " its package."
    )
  return builder


def load(path: str | os.PathLike) -> type[SegmentationBuilder]:
  """Imports the class `Builder` of a file, or of a folder that is named like its dataset.

  Args:
    path: A .py file, or a folder with <folder>_dataset_builder.py, another one of that ending, or
      __init__.py. Its place is added to the end of the search path for modules, for what it
      imports itself and for worker processes.

  Raises:
    InputError: There is no such file, its import fails, or it has no complete `Builder`.
  """
  file = _file_of(pathlib.Path(path).expanduser())
  root, name = _module_of(file)
  if os.fspath(root) not in sys.path:
    # At the end: a file beside it must not stand in for a module of Python or of a library.
    sys.path.append(os.fspath(root))
  # The builder loads TFDS itself; help and flags of other datasets must not wait for it.
  from tensorflow_datasets.core import registered

  try:
    # Its name may be that of a dataset of ours, which our caller says better than TFDS does.
    with registered.skip_registration():
      module = importlib.import_module(name)
  except Exception as error:
    raise InputError(f"{_place_of(error, file)}: the import fails: {_one_line(error)}.") from error
  origin = getattr(module, "__file__", None)
  if origin is None or pathlib.Path(origin).resolve() != file:
    raise InputError(
        f"{file}: another module has the name {name!r} already, {origin}. Rename the file or its"
        " folder."
    )
  return _checked(getattr(module, _CLASS, None), str(file), module)


def _file_of(path: pathlib.Path) -> pathlib.Path:
  """Returns the file that is to be imported, without links."""
  if path.is_file():
    if path.suffix != ".py":
      raise InputError(f"{path}: a builder must be a .py file, or a folder that holds it. {_PAGE}.")
    return path.resolve()
  if not path.is_dir():
    raise InputError(f"{path}: there is no such file or folder of a builder. {_PAGE}.")
  path = path.resolve()
  named = sorted(path.glob(f"*{_SUFFIX}.py"))
  expected = path / f"{path.name}{_SUFFIX}.py"
  candidates = [expected] if expected in named else named
  if not candidates and (path / "__init__.py").is_file():
    candidates = [path / "__init__.py"]
  if len(candidates) != 1:
    found = ", ".join(file.name for file in sorted(path.glob("*.py"))) or "no .py file"
    raise InputError(
        f"{path}: the folder of a builder must hold {expected.name} (or name the file itself). It"
        f" holds {found}."
    )
  return candidates[0]


def _module_of(file: pathlib.Path) -> tuple[pathlib.Path, str]:
  """Returns (folder to search, dotted name) of a file: packages around it are part of its name."""
  parts = [] if file.name == "__init__.py" else [file.stem]
  folder = file.parent
  while (folder / "__init__.py").is_file():
    parts.insert(0, folder.name)
    folder = folder.parent
  return folder, ".".join(parts)


def _place_of(error: BaseException, file: pathlib.Path) -> str:
  """Returns file:line of the user's code where an import failed."""
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}:{error.lineno}"
  frames = traceback.extract_tb(error.__traceback__)
  own = [frame for frame in frames if pathlib.Path(frame.filename).parent == file.parent]
  return f"{own[-1].filename}:{own[-1].lineno}" if own else str(file)


def _one_line(error: BaseException) -> str:
  text = error.msg if isinstance(error, SyntaxError) else str(error)
  return f"{type(error).__name__}: {' '.join(str(text).split()).rstrip('.')}"


def _checked(
    found: Any, where: str, module: types.ModuleType | None = None
) -> type[SegmentationBuilder]:
  """Returns what was found under the name `Builder`, if it is complete.

  Args:
    found: The class, or what is there instead; None for nothing.
    where: Begins the error.
    module: Says which other classes there are.
  """
  # TFDS, which whoever only lists builders does without.
  from flexunet.datasets.builder import segmentation_builder, volume_builder

  base = segmentation_builder.SegmentationBuilder
  if not inspect.isclass(found) or not issubclass(found, base):
    classes = [
        name for name, value in vars(module or types).items()
        if module is not None and inspect.isclass(value) and value.__module__ == module.__name__
    ]
    came = f"a {_CLASS} that is none" if found is not None else f"no class {_CLASS}"
    raise InputError(
        f"{where}: must define `class {_CLASS}(VolumeBuilder)` for scans or `class {_CLASS}"
        f"(SegmentationBuilder)` for images. It has {came}"
        + (f"; its classes: {', '.join(classes)}" if classes else "")
        + f". {_PAGE}."
    )
  if missing := _missing(found, base, volume_builder.VolumeBuilder):
    raise InputError(f"{where}: {_CLASS} lacks {', '.join(missing)}. {_PAGE}.")
  if issubclass(found, volume_builder.VolumeBuilder):
    flat = [
        config.name for config in found.named_configs().values()
        if not issubclass(config.OPTIONS, volume_builder.VolumeConfig.OPTIONS)
    ]
    if flat:
      raise InputError(
          f"{where}: the configs of a VolumeBuilder must be `VolumeConfig`s. Others: {flat}."
      )
  return found


def _missing(builder: type, base: type, scans: type) -> list[str]:
  """Returns what a builder must give and this one does not, as the user would look for it."""
  methods = ["label_scheme", "find_cases"]
  methods += ["label_map", "slice_plan"] if issubclass(builder, scans) else ["slices_of"]
  lacking = [
      f"{name}()" for name in methods
      if getattr(builder, name) is getattr(scans if name == "label_map" else base, name)
  ]
  if getattr(builder, "VERSION", None) is None:
    lacking.insert(0, 'VERSION, such as tfds.core.Version("1.0.0")')
  if not getattr(builder, "BUILDER_CONFIGS", None):
    lacking.insert(0, 'BUILDER_CONFIGS, such as [VolumeConfig(name="slices")]')
  return lacking
