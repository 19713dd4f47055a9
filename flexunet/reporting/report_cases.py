"""The report's pictures: worst and best volumes as image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flexunet.datasets.label_scheme import LabelScheme
from flexunet.evaluation.evaluation_examples import Example
from flexunet.reporting import overlay
from flexunet.reporting import report_html as page


def case_section(examples: Sequence[Example], scheme: LabelScheme) -> str:
  """Returns the examples, worst first; nothing where there are none."""
  if not examples:
    return ""
  palette = overlay.display_palette(scheme.palette)
  legend = "".join(
      f'<span class="item">{page.swatch(palette[index])}{page.text(name)}</span>'
      for index, name in enumerate(scheme.names)
      if index
  )
  parts = [f'<div class="legend">{legend}</div>']
  only = "The only case" if len(examples) == 1 else "Best cases"
  for side, title in (("worst", "Worst cases"), ("best", only)):
    if chosen := [example for example in examples if example.side == side]:
      parts.append(f"<h3>{title}</h3>")
      parts += [_case(example, palette) for example in chosen]
  parts.append(
      '<p class="note">Of each volume the slice with most true foreground; the Dice is that of the'
      " whole volume. Where there is a frame in the first picture, the others enlarge it.</p>"
  )
  return "".join(parts)


def _case(example: Example, palette: np.ndarray) -> str:
  box = overlay.crop_box([example.truth, example.prediction])
  crop = example.image[box]
  zoomed = crop.shape != example.image.shape
  panels = [
      ("slice", overlay.frame(example.image, box) if zoomed else example.image),
      ("image", crop),
      ("truth", overlay.blend(crop, example.truth[box], palette)),
      ("prediction", overlay.blend(crop, example.prediction[box], palette)),
  ]
  figures = "".join(
      f'<figure><div class="picture">'
      f"{page.picture(overlay.stretch(pixels, example.aspect), name)}</div>"
      f"<figcaption>{name}</figcaption></figure>"
      # Without anything to enlarge the first two would be the same picture.
      for name, pixels in (panels if zoomed else panels[1:])
  )
  per_class = ", ".join(
      f"{page.text(name)} {page.number(dice)}"
      for name, dice in example.dice.items()
      if dice is not None
  )
  detail = f"<span>{per_class}</span>" if len(example.dice) > 1 else ""
  columns = len(panels) if zoomed else len(panels) - 1
  return (
      f'<div class="case"><header><b>{page.text(example.subject)}</b>'
      f'<span class="dice">Dice <b>{page.number(example.foreground_dice)}</b></span>{detail}'
      f'<span class="soft">volume {page.text(example.volume)}, slice {example.slice_index}</span>'
      f'</header><div class="panels of{columns}">{figures}</div></div>'
  )
