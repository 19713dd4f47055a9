"""The options of the dataset `image_mask`: how a folder of images and colour masks is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flexunet.core.config_fields import knob
from flexunet.core.errors import InputError
from flexunet.datasets.builder.record_options import RecordOptions
from flexunet.datasets.image_mask import folders, masks
from flexunet.datasets.published_palettes import PRESETS
from flexunet.imaging.label_scheme import LabelScheme

SPLITS = ("published", "subject")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMaskOptions(RecordOptions):
  """Adds the colours of the masks, and whose slice an image is.

  Attributes:
    palette_colors: The palette as {name: (red, green, blue)} or as pairs, the background first; it
      replaces `palette`, whose file it comes from. It has no flag.
  """

  palette: str = knob(
      "",
      f"Colours of the masks: {', '.join(PRESETS)}, or a JSON file {{\"background\": [0, 0, 0],"
      " \"tumour\": [255, 0, 0]}.",
  )
  palette_colors: tuple | None = None
  subject_pattern: str = knob(
      "",
      "Regular expression with a group subject, and maybe a group slice, that is searched in the"
      " file names; by default the rules of the published names.",
  )
  split: str = knob(
      "published",
      "Keep train, valid and test of the folder, or split again by subject.",
      choices=SPLITS,
  )
  off_palette_limit: float = knob(
      0.25, "Largest share of the pixels of a mask that may have no colour of the palette.",
      minimum=0, maximum=1,
  )  # fmt: skip
  mask_threshold: int | None = knob(
      None,
      "Grey level from which a pixel of a mask is foreground, for masks of one class; the colours"
      " of the palette are then not asked.",
      minimum=1, maximum=255, unset="the nearer colour of the palette",
  )  # fmt: skip
  image_channels: int = knob(
      1, "1 for grey images (also where they are stored as RGB), 3 for colour.",
      minimum=1, maximum=3,
  )  # fmt: skip

  def __post_init__(self):
    if isinstance(self.palette_colors, (Mapping, list, tuple)):
      object.__setattr__(self, "palette_colors", _as_pairs(self.palette_colors))
    super().__post_init__()
    if self.image_channels == 2:
      raise InputError("image_channels must be 1 or 3. Got: 2.")
    folders.compile_rules(self.subject_pattern)
    if self.palette_colors is None and self.palette and self.palette not in PRESETS:
      # The colours, not the file, are what a build depends on; a path has no place in a report.
      found = {c.name: c.color for c in masks.palette_scheme(self.palette).classes}
      object.__setattr__(self, "palette_colors", _as_pairs(found))
    if self.palette_colors is not None:
      object.__setattr__(self, "palette", "custom")
      self.scheme()
    if self.mask_threshold is not None and self.scheme().num_classes != 2:
      raise InputError(
          "mask_threshold divides a mask in two: it needs a palette of one class and background."
          f" {self.palette or 'binary'} has {self.scheme().num_classes} classes."
      )

  def scheme(self) -> LabelScheme:
    """Returns classes and colours."""
    if self.palette_colors is not None:
      return masks.scheme_of(dict(self.palette_colors), "palette_colors")
    return masks.palette_scheme(self.palette or "binary")


def _as_pairs(given: Any) -> tuple:
  try:
    return tuple((str(name), tuple(color)) for name, color in dict(given).items())
  except (TypeError, ValueError) as error:
    raise InputError(
        'palette_colors must be {"background": [0, 0, 0], "tumour": [255, 0, 0], ...}. Got:'
        f" {str(given)[:120]}."
    ) from error
