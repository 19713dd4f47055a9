"""Options of the dataset `image_mask`, as a config of TFDS."""

from __future__ import annotations

import dataclasses

from flexunet.datasets.builder_config import RecordConfig
from flexunet.datasets.errors import InputError, unknown_name
from flexunet.datasets.image_mask import colors, naming
from flexunet.datasets.label_scheme import LabelScheme
from flexunet.datasets.published_palettes import PRESETS

SPLITS = ("published", "subject")


@dataclasses.dataclass(kw_only=True)
class ImageMaskConfig(RecordConfig):
  """How a folder of pictures and colour masks is read.

  Attributes:
    palette: A preset's name, or a JSON file {"background": [0, 0, 0], "tumour": [255, 0, 0]}; the
      first class is the background.
    palette_colors: The same as a mapping, or as (name, (r, g, b)) pairs; it wins over `palette`.
    subject_pattern: Regular expression with a group `subject` and maybe a group `slice`, searched
      in the file name without suffix; "" takes the rules of the published names.
    split: "published" keeps train, valid and test of the folder; "subject" splits anew by subject.
    off_palette_limit: Largest share of a mask's pixels, 0..1, that may be of no palette colour.
    image_channels: 1 for grey pictures (also when stored as RGB), 3 for colour.
  """

  palette: str = ""
  palette_colors: tuple | None = None
  subject_pattern: str = ""
  split: str = "published"
  off_palette_limit: float = 0.25
  image_channels: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.split not in SPLITS:
      raise unknown_name("split", self.split, SPLITS)
    if not 0 <= float(self.off_palette_limit) <= 1:
      raise InputError(f"off_palette_limit is a share 0..1, got {self.off_palette_limit}.")
    if self.image_channels not in (1, 3):
      raise InputError(f"image_channels must be 1 or 3, got {self.image_channels}.")
    unfit = [n for n in ("plane", "window", "isotropic_mm") if getattr(self, n) is not None]
    if unfit or self.form != "slices":
      raise InputError(
          f"Pictures are 2-D and 8-bit already; image_mask does not take"
          f" {', '.join(unfit or ['volumes'])}."
      )
    naming.compile_rules(self.subject_pattern)
    if self.palette_colors is not None:
      self.palette_colors = _as_pairs(dict(self.palette_colors))
    elif self.palette and self.palette not in PRESETS:
      # The colours, not the file, are what a build depends on; a path has no place in a report.
      scheme = colors.palette_scheme(self.palette)
      self.palette_colors = _as_pairs({c.name: c.color for c in scheme.classes})
    if self.palette_colors is not None:
      self.palette = "custom"
      colors.scheme_of(dict(self.palette_colors), "palette_colors")

  def scheme(self) -> LabelScheme:
    """Returns classes and colours."""
    if self.palette_colors is not None:
      return colors.scheme_of(dict(self.palette_colors), "palette_colors")
    return colors.palette_scheme(self.palette or "binary")


def _as_pairs(mapping) -> tuple:
  try:
    return tuple((str(name), tuple(color)) for name, color in mapping.items())
  except TypeError as error:
    raise InputError(
        'palette_colors must be {"background": [0, 0, 0], "tumour": [255, 0, 0], ...}. Got:'
        f" {str(mapping)[:120]}."
    ) from error


def options_of(palette: str) -> dict:
  """Returns the config options that a value of the flag --palette stands for."""
  if palette in PRESETS:
    return {"palette": palette}
  scheme = colors.palette_scheme(palette)
  pairs = _as_pairs({c.name: c.color for c in scheme.classes})
  return {"palette": "custom", "palette_colors": pairs}
