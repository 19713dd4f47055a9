"""The page of a report and the pieces of HTML in it; `text` escapes names, so none can break it."""

from __future__ import annotations

import base64
import html
import importlib.resources
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.reporting import overlay

DASH = "–"


def document(
    *,
    kind: str,
    heading: str,
    lead: str,
    top: str,
    sections: Sequence[tuple[str, str, str]],
    footer: str,
) -> str:
  """Returns a whole page that needs no other file.

  Args:
    kind: What the page is, e.g. "Dataset report".
    heading: What it is about.
    lead: One sentence below the heading.
    top: HTML above the sections.
    sections: (anchor, title, HTML) of each; one without HTML is left out.
    footer: Last lines.
  """
  shown = [section for section in sections if section[2]]
  template = importlib.resources.files("flexunet.reporting").joinpath("page.html")
  return string.Template(template.read_text(encoding="utf-8")).substitute(
      kind=text(kind),
      title=text(f"{kind}: {heading}"),
      # A dataset's name breaks at its slashes on a narrow screen.
      heading=text(heading).replace("/", "/<wbr>"),
      lead=text(lead),
      navigation="".join(
          f'<a href="#{text(anchor)}">{text(title)}</a>' for anchor, title, _ in shown
      ),
      body=top + "".join(
          f'<section><h2 id="{text(anchor)}">{text(title)}</h2>{body}</section>'
          for anchor, title, body in shown
      ),
      footer=text(footer),
  )


def text(value: Any) -> str:
  """Returns a value as escaped text."""
  return html.escape(str(value))


def words(name: str) -> str:
  """Returns the name of a class as words, escaped: "white_matter" is "white matter"."""
  return text(name.replace("_", " "))


def slice_plan(plan: Mapping[str, Any]) -> str:
  """Returns how volumes are cut into slices, from a stored `SlicePlan`."""
  return f"{text(plan['plane'])}, of volumes oriented to {text(plan['axes'])}"


def intensity(window: Mapping[str, Any]) -> str:
  """Returns how intensities become 8 bits, from a stored `IntensityWindow`."""
  low, high = f"{window['low']:g}", f"{window['high']:g}"
  texts = {
      "percentile": f"percentiles {low} to {high} of each volume become 0 to 255",
      "window": f"{low} to {high} become 0 to 255",
  }
  return texts.get(window["kind"], "8 bits, as stored")


def number(value: Any, digits: int = 3) -> str:
  """Returns a number with a fixed count of decimals; a dash for what is not defined."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return DASH
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return text(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def count(amount: int, unit: str) -> str:
  """Returns "1 volume", "2 volumes", "1,205 slices"."""
  return f"{amount:,} {unit}" + ("" if amount == 1 else "s")


def interval(ends: Mapping[str, float] | None, digits: int = 3) -> str:
  """Returns "0.81 to 0.89" of `low` and `high`; a dash for None."""
  return DASH if not ends else f"{number(ends['low'], digits)} to {number(ends['high'], digits)}"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> str:
  """Returns a table whose cells are HTML.

  Args:
    headers: One per column.
    rows: Cells, one per column.
    texts: Positions of the columns that hold words; the others hold numbers.
  """

  def cells(values: Sequence[str], tag: str) -> str:
    return "".join(
        f"<{tag}>{value}</{tag}>" if index in texts else f'<{tag} class="number">{value}</{tag}>'
        for index, value in enumerate(values)
    )

  body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
  return (
      f'<div class="scroll"><table><thead><tr>{cells(headers, "th")}</tr></thead>'
      f"<tbody>{body}</tbody></table></div>"
  )


def definitions(entries: Sequence[tuple[str, str]]) -> str:
  """Returns a list of terms, each with its explanation; both are HTML."""
  return "<dl>" + "".join(f"<dt>{term}</dt><dd>{what}</dd>" for term, what in entries) + "</dl>"


def color(rgb: Iterable[int]) -> str:
  """Returns "#rrggbb"."""
  return "#{:02x}{:02x}{:02x}".format(*(int(channel) for channel in rgb))


def swatch(rgb: Iterable[int]) -> str:
  """Returns a small square of a colour."""
  return f'<span class="swatch" style="background:{color(rgb)}"></span>'


def class_name(name: str, rgb: Iterable[int]) -> str:
  """Returns the name of a class in words beside its colour."""
  return f'<span class="item">{swatch(rgb)}{words(name)}</span>'


def image(pixels: np.ndarray, description: str) -> str:
  """Returns an <img> that holds a uint8 image, [H, W] or [H, W, 3], as PNG."""
  data = base64.b64encode(overlay.encode_png(pixels)).decode("ascii")
  return f'<img alt="{text(description)}" src="data:image/png;base64,{data}">'
