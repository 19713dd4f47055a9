"""The page of a report and the pieces of HTML in it; `text` escapes names, so none can break it."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import math
import pathlib
import string
import urllib.parse
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
  script = _part("page.js")
  return string.Template(_part("page.html")).substitute(
      style=_part("page.css"),
      dark=_part("page_dark.css"),
      script=script,
      # The page's policy runs this script and no other.
      script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
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


def _part(name: str) -> str:
  """Returns a file of the page that lies beside this module."""
  return importlib.resources.files("flexunet.reporting").joinpath(name).read_text("utf-8")


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
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Sequence[int] = (0,),
    sortable: bool = True,
) -> str:
  """Returns a table whose cells are HTML.

  Args:
    headers: One per column.
    rows: Cells, one per column.
    texts: Positions of the columns that hold words; the others hold numbers.
    sortable: A click on a heading sorts several rows, where scripts are allowed.
  """

  def cells(values: Sequence[str], tag: str) -> str:
    return "".join(
        f"<{tag}>{value}</{tag}>" if index in texts else f'<{tag} class="number">{value}</{tag}>'
        for index, value in enumerate(values)
    )

  body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
  kind = ' class="sortable"' if sortable and len(rows) > 1 else ""
  return (
      f'<div class="scroll"><table{kind}><thead><tr>{cells(headers, "th")}</tr></thead>'
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
  return _image(overlay.encode_png(pixels), description)


def layer(ids: np.ndarray, palette: np.ndarray, kind: str) -> str:
  """Returns an <img> to lie over another one: ids [H, W] in their colours, 0 transparent.

  Args:
    ids: uint8 [H, W], below len(palette).
    palette: uint8 [classes, 3].
    kind: Class of the element, by which the page shows and hides it.
  """
  return _image(overlay.encode_layer(ids, palette), "", f"layer {kind}")


def _image(png: bytes, description: str, kind: str = "") -> str:
  data = base64.b64encode(png).decode("ascii")
  named = f' class="{kind}"' if kind else ""
  return f'<img{named} alt="{text(description)}" src="data:image/png;base64,{data}">'


def chart(svg: str) -> str:
  """Returns a chart in a box that keeps its text readable; nothing for no chart."""
  return f'<div class="chart">{svg}</div>' if svg else ""


def chart_grid(svgs: Iterable[str]) -> str:
  """Returns charts side by side where there is room; nothing where none is drawn."""
  shown = "".join(chart(svg) for svg in svgs)
  return f'<div class="charts">{shown}</div>' if shown else ""


def file_links(folder: pathlib.Path, files: Mapping[pathlib.Path, str]) -> str:
  """Returns links to the files beside a page that are there; nothing where none is.

  Args:
    folder: Where the page lies.
    files: Each below it, with what is in it.
  """
  there = [(path.relative_to(folder), what) for path, what in files.items() if path.is_file()]
  if not there:
    return ""
  entries = [
      (f'<a href="{text(urllib.parse.quote(path.as_posix()))}">{text(path.as_posix())}</a>',
       text(what))
      for path, what in there
  ]  # fmt: skip
  note = "The links work while this page lies in its folder."
  return definitions(entries) + f'<p class="note">{note}</p>'
