"""What is written beside a predicted label to look at: sheet, film, an image per slice."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import numpy as np

from flexunet.core import files
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan
from flexunet.prediction.outputs import Outputs
from flexunet.prediction.scan_volumes import VolumePrediction
from flexunet.prediction.scans import Scan
from flexunet.reporting import animation, overlay, sheets

_LONGEST = 512  # Of a slice of a film or of its own, in pixels.


def write_volume(
    scan: Scan,
    outputs: Outputs,
    found: VolumePrediction,
    plan: SlicePlan | None,
    scheme: LabelScheme,
) -> None:
  """Writes what was asked for of a volume, each file or folder in one step.

  Args:
    scan: The scan.
    outputs: What is asked for.
    found: Its prediction.
    plan: How it was cut; None where the run does not say.
    scheme: Names and colours of the classes.
  """
  height, width = found.slices.spacing_mm
  view = sheets.View.of_scheme(
      scheme,
      aspect=height / width if width > 0 else 1.0,  # Not known where no spacing is stated.
      axes=plan.display_axes if plan and found.oriented else "",
  )
  pixels, label = found.slices.pixels, found.label_slices
  if outputs.overlay:
    sheet = sheets.volume_sheet(pixels, label, view)
    files.write_bytes(scan.output(outputs.folder, "_overlay.png"), overlay.encode_png(sheet))
  if outputs.animation != "none":
    frames = sheets.slice_images(pixels, label, view, size=_LONGEST)
    film = animation.encode(frames, outputs.animation, outputs.animation_fps, view.palette)
    files.write_bytes(scan.output(outputs.folder, f"_overlay.{outputs.animation}"), film)
  if outputs.overlay_slices:
    _write_slices(scan.output(outputs.folder, "_slices"), pixels, label, view)


def write_image(
    scan: Scan, outputs: Outputs, image: np.ndarray, label: np.ndarray, scheme: LabelScheme
) -> None:
  """Writes the overlay of an image, uint8 [H, W], and its label, uint8 [H, W], if asked for."""
  if outputs.overlay:
    view = sheets.View.of_scheme(scheme)
    tile = sheets.slice_tile(image, label, view, size=max(_LONGEST, *image.shape))
    sheet = sheets.contact_sheet([tile], columns=1, tile_size=None, legend=view.legend)
    files.write_bytes(scan.output(outputs.folder, "_overlay.png"), overlay.encode_png(sheet))


def _write_slices(
    folder: pathlib.Path, pixels: np.ndarray, label: np.ndarray, view: sheets.View
) -> None:
  """Replaces a folder by one with an image per slice; it is whole whenever it is there."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  for left in folder.parent.glob(f".{_escaped(folder.name)}.*"):  # Of a program that was killed.
    shutil.rmtree(left, ignore_errors=True)
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    partial.chmod(0o755)
    images = sheets.slice_images(pixels, label, view, size=_LONGEST)
    digits = max(3, len(str(label.shape[-1] - 1)))
    for number, image in enumerate(images):
      # Named like our other overlays, which prediction never takes for scans.
      path = partial / f"slice_{number:0{digits}d}_overlay.png"
      path.write_bytes(overlay.encode_png(image))
    if folder.exists():
      shutil.rmtree(folder)
    partial.rename(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _escaped(name: str) -> str:
  """Returns a name as a pattern of `glob` that matches it alone."""
  return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
