"""The report's part on single volumes: the worst and the best, and what is wrong in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flexunet.evaluation.examples import Example, ExampleSlice
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import colors, overlay
from flexunet.reporting import html_parts as page

# Drawings over a slice, in pixels: shown a third as large, an outline is a pixel wide.
_LONGEST, _OUTLINE = 640, 3
_ERRORS = np.array([(0, 0, 0), colors.MISSED, colors.FALSE, colors.WRONG_CLASS], np.uint8)
_ERROR_NAMES = ("missed (false negative)", "false (false positive)", "another class")


def cases_section(examples: Sequence[Example], scheme: LabelScheme) -> str:
  """Returns the examples as HTML, worst first; nothing where there are none.

  Args:
    examples: Volumes, each on the side "worst" or "best".
    scheme: Names and colours of the classes.
  """
  if not examples:
    return ""
  palette = colors.display_palette(scheme.palette)
  named = [
      page.class_name(name, palette[index]) for index, name in enumerate(scheme.names) if index
  ]
  # With one class there is no other one to be taken for.
  kinds = _ERROR_NAMES if len(named) > 1 else _ERROR_NAMES[:2]
  errors = [page.class_name(name, _ERRORS[index]) for index, name in enumerate(kinds, start=1)]
  parts = [
      f'<div class="legend">{" ".join(named)}<label class="switch" for="fill">fill classes</label>'
      f'</div><div class="legend">Errors: {" ".join(errors)}</div>'
  ]
  only = "The only case" if len(examples) == 1 else "Best cases"
  for side, title in (("worst", "Worst cases"), ("best", only)):
    if chosen := [example for example in examples if example.side == side]:
      parts.append(f"<h3>{title}</h3>")
      parts += [_case(example, palette) for example in chosen]
  parts.append(
      '<p class="note">Each volume is shown by the slice with most true foreground, the worst also'
      " by the slice with most wrong pixels; the Dice is that of the whole volume. A frame in the"
      " first image marks what the others enlarge. Slices are counted from 0.</p>"
  )
  return "".join(parts)


def _case(example: Example, palette: np.ndarray) -> str:
  per_class = ", ".join(
      f"{page.words(name)} {page.number(dice)}"
      for name, dice in example.dice.items()
      if dice is not None
  )
  detail = f"<span>{per_class}</span>" if len(example.dice) > 1 else ""
  shown = "".join(_slice(one, example.aspect, palette) for one in example.slices)
  return (
      f'<div class="case"><header><b>{page.text(example.subject)}</b>'
      f'<span class="dice">Dice <b>{page.number(example.foreground_dice)}</b></span>{detail}'
      f'<span class="soft">volume {page.text(example.volume)}</span></header>{shown}</div>'
  )


def _slice(shown: ExampleSlice, aspect: float, palette: np.ndarray) -> str:
  """Returns a slice alone, with truth, with prediction, with what is wrong."""
  box = overlay.crop_box([shown.truth, shown.prediction])
  truth, prediction = shown.truth[box], shown.prediction[box]
  shape = overlay.square_shape(truth.shape, aspect, _LONGEST)
  base = overlay.stretch(shown.image[box], aspect)
  errors = overlay.errors(truth, prediction)
  panels = [
      ("image", page.image(base, "image")),
      ("truth", page.image(base, "truth") + _class_layers(truth, shape, palette)),
      ("prediction", page.image(base, "prediction") + _class_layers(prediction, shape, palette)),
      ("errors", page.image(base, "errors") + _error_layer(errors, shape)),
  ]
  if truth.shape != shown.truth.shape:
    whole = overlay.stretch(overlay.frame(shown.image, box), aspect)
    panels.insert(0, ("slice", page.image(whole, "slice")))
  figures = "".join(
      f'<figure><div class="frame">{images}</div><figcaption>{name}</figcaption></figure>'
      for name, images in panels
  )
  wrong = page.count(shown.wrong_pixels, "wrong pixel")
  return (
      f"<h4>Slice {shown.slice_index}, {_reason(shown)}: {wrong}</h4>"
      f'<div class="panels of{len(panels)}">{figures}</div>'
  )


def _reason(shown: ExampleSlice) -> str:
  """Returns why a slice is shown."""
  if not shown.most_truth:
    return "most error"
  kind = "truth" if shown.truth.any() or not shown.prediction.any() else "prediction"
  return f"most {kind} and most error" if shown.most_error else f"most {kind}"


def _class_layers(label: np.ndarray, shape: tuple[int, int], palette: np.ndarray) -> str:
  """Returns the filled classes, shown where the reader asks for them, and their thin outlines."""
  outline = overlay.outline(overlay.resized(label, shape, picked=True), _OUTLINE)
  area = overlay.resized(label, _least(label, shape), picked=True)
  return page.layer(area, palette, "area") + page.layer(outline, palette, "outline")


def _error_layer(errors: np.ndarray, shape: tuple[int, int]) -> str:
  return page.layer(overlay.resized(errors, _least(errors, shape), picked=True), _ERRORS, "error")


def _least(label: np.ndarray, shape: tuple[int, int]) -> tuple[int, int]:
  """Returns the size at which pixels can be told apart: the page itself enlarges them."""
  return label.shape[:2] if label.shape[0] * shape[1] == label.shape[1] * shape[0] else shape
