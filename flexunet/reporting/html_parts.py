"""Small pieces of HTML for the report; every text passes `text`: no name can break a page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flexunet.reporting import overlay

DASH = "–"


def text(value: Any) -> str:
  """Returns a value as escaped text."""
  return html.escape(str(value))


def number(value: Any, digits: int = 3) -> str:
  """Returns a figure with a fixed count of decimals; a dash for what is not defined."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return DASH
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return text(value)
  return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def count(amount: int, unit: str) -> str:
  """Returns "1 volume", "2 volumes", "1,205 slices"."""
  return f"{amount:,} {unit}" + ("" if amount == 1 else "s")


def interval(ends: Sequence[float] | None, digits: int = 3) -> str:
  """Returns "0.81 to 0.89"; a dash for None."""
  return DASH if not ends else f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> str:
  """Returns a table; cells are HTML. The columns `texts` hold words, the others figures."""

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
  """Returns a list of terms, each with its explanation (HTML)."""
  return "<dl>" + "".join(f"<dt>{term}</dt><dd>{what}</dd>" for term, what in entries) + "</dl>"


def color(rgb: Iterable[int]) -> str:
  """Returns "#rrggbb"."""
  return "#{:02x}{:02x}{:02x}".format(*(int(channel) for channel in rgb))


def swatch(rgb: Iterable[int]) -> str:
  """Returns a small square of a colour."""
  return f'<span class="swatch" style="background:{color(rgb)}"></span>'


def picture(pixels: np.ndarray, description: str) -> str:
  """Returns an <img> with a uint8 picture inside, as PNG."""
  data = base64.b64encode(overlay.encode_png(pixels)).decode("ascii")
  return f'<img alt="{text(description)}" src="data:image/png;base64,{data}">'
