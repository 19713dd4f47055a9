"""Licence, citation and home of a dataset, as its folder or our own description states them."""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.built_dataset import INFO_NAME
from flexunet.reporting import html_parts as page

_CROISSANT_NAME = "croissant.json"
# The part of a dataset's README on its licence, and the points in it.
_SECTION = re.compile(r"^## Source and licence\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_POINT = re.compile(r"^- ", re.MULTILINE)
_CREATIVE_COMMONS = re.compile(r"^https?://creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)")
_ENTRY = re.compile(r"@\w+\s*\{(.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*[{\"](.*?)[}\"],?\s*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class DataSource:
  """What must be said of where data are from.

  Attributes:
    licenses: A text each; empty where none is stated.
    citation: BibTeX; "" where none is stated.
    homes: Addresses of the publisher.
  """

  licenses: tuple[str, ...] = ()
  citation: str = ""
  homes: tuple[str, ...] = ()

  def __bool__(self) -> bool:
    return bool(self.licenses or self.citation or self.homes)


def of_folder(folder: pathlib.Path) -> DataSource:
  """Returns what the metadata beside the shards of a built dataset state.

  Metadata that cannot be read say nothing here: those that open a dataset refuse them.
  """
  croissant, info = _values(folder / _CROISSANT_NAME), _values(folder / INFO_NAME)
  location = info.get("location")
  urls = location.get("urls") if isinstance(location, Mapping) else None
  terms = info.get("redistributionInfo")
  return DataSource(
      licenses=_texts(croissant.get("license"))
      or _texts(terms.get("license") if isinstance(terms, Mapping) else None),
      citation="\n".join(_texts(croissant.get("citeAs")) or _texts(info.get("citation"))).strip(),
      homes=_texts(croissant.get("url")) or _texts(urls),
  )


def of_package(dataset: str) -> DataSource:
  """Returns what our description of a dataset says; nothing for a dataset of others."""
  if dataset not in catalog.NAMES:
    return DataSource()
  folder = importlib.resources.files(f"flexunet.datasets.{dataset}")
  readme = _SECTION.search(folder.joinpath("README.md").read_text("utf-8"))
  points = _POINT.split(readme[1])[1:] if readme else []
  return DataSource(
      licenses=tuple(re.sub(r"[`*]|\s*\n\s*", _plain, point).strip() for point in points),
      citation=folder.joinpath("CITATIONS.bib").read_text("utf-8").strip(),
  )


def _plain(mark: re.Match[str]) -> str:
  """Returns what stands instead of a mark of Markdown, or of the end of a line."""
  return " " if "\n" in mark[0] else ""


def section(source: DataSource) -> str:
  """Returns licence and citation as HTML; nothing where neither is known."""
  if not source:
    return ""
  unknown = '<span class="soft">not stated by the dataset: ask its publisher</span>'
  licenses = "<br>".join(page.text(_in_words(one)) for one in source.licenses) or unknown
  cited = "<br>".join(map(page.text, references(source.citation)))
  entries = [("Licence", licenses)]
  if cited:
    entries.append(("Please cite", cited))
  if source.homes:
    entries.append(("Publisher", "<br>".join(map(page.text, source.homes))))
  bibtex = ""
  if source.citation:
    bibtex = f"<details><summary>BibTeX</summary><pre>{page.text(source.citation)}</pre></details>"
  return page.definitions(entries) + bibtex


def _in_words(license: str) -> str:
  """Returns a licence with its usual name, where it is an address of Creative Commons."""
  if known := _CREATIVE_COMMONS.search(license):
    return f"CC {known[1].upper()} {known[2]}: {license}"
  return license


def references(bibtex: str) -> list[str]:
  """Returns "First author et al. (year): title. doi" of each entry of BibTeX."""
  found = []
  for entry in _ENTRY.findall(bibtex):
    fields = {name.lower(): value for name, value in _FIELD.findall(entry)}
    plain = {name: re.sub(r"[{}]", "", value) for name, value in fields.items()}
    authors = plain.get("author", "").split(" and ")
    first = authors[0].split(",")[0] + (" et al." if len(authors) > 1 else "")
    year = f" ({plain['year']})" if "year" in plain else ""
    where = f" doi:{plain['doi']}" if "doi" in plain else ""
    start = f"{first}{year}: " if first else ""
    if "title" in plain:
      found.append(f"{start}{plain['title'].rstrip('.')}.{where}")
  return found


def _values(path: pathlib.Path) -> Mapping[str, Any]:
  try:
    values = files.read_json(path)
  except InputError:
    return {}
  return values if isinstance(values, Mapping) else {}


def _texts(value: Any) -> tuple[str, ...]:
  """Returns the texts of a JSON value that is one or a list of them."""
  values: Sequence[Any] = value if isinstance(value, list) else [value]
  return tuple(one for one in values if isinstance(one, str) and one.strip())
