"""`croissant.json`: a built dataset in the metadata format of MLCommons (Croissant 1.0).

It lists every file with its sha256, and the table of records, which any Croissant reader can load.
Written by hand rather than by the `mlcroissant` package, whose import takes longer than a small
build; a test reads it back with that package.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets.built_dataset import RECORDS_NAME

NAME = "croissant.json"
_FORMATS = {"tfrecord": "application/x-tfrecord", "array_record": "application/x-array-record"}
_TEXT_COLUMNS = {"split", "shard", "key", "subject", "volume"}
_DESCRIPTIONS = {
    "shard": "File that holds the record.",
    "record": "Position of the record in its shard.",
    "offset": "Byte at which the record's frame begins; -1 in containers without offsets.",
    "length": "Bytes of the record's payload, a tf.train.Example by features.json.",
    "subject": "Stable pseudonym of the person; nobody stands in two splits.",
    "fold": "Cross-validation fold of the subject; -1: takes no part.",
}
# The context that the specification asks for.
_TERMS = (
    "citeAs column conformsTo equivalentProperty extract field fileProperty fileObject fileSet"
    " format includes isLiveDataset jsonPath key md5 parentField path recordSet references regex"
    " repeated replace samplingRate separator source subField transform"
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS.split()},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}


@dataclasses.dataclass(frozen=True)
class License:
  """A licence of a source: its name, and where its text is.

  Attributes:
    standard: The address alone names the licence, as with Creative Commons.
  """

  name: str
  url: str = ""
  standard: bool = False

  def __str__(self) -> str:
    if self.standard or not self.url:
      return self.url if self.standard else self.name
    return f"{self.name}: {self.url}"


CC_BY = License("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", standard=True)
CC_BY_NC_SA = License(
    "CC BY-NC-SA 4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/", standard=True
)


def write(folder: pathlib.Path, report: dict[str, Any], prose: dict[str, Any]) -> None:
  """Writes `croissant.json` beside the shards.

  Args:
    folder: Holds the shards and `records.csv` already.
    report: The build report.
    prose: What no table says, from `prose_of` or `read_prose`.
  """
  table = folder / RECORDS_NAME
  with open(table, newline="", encoding="utf-8") as stream:
    columns = next(csv.reader(stream))
  media_type = _FORMATS[report["file_format"]]
  content = {
      "@context": _CONTEXT,
      "@type": "sc:Dataset",
      "conformsTo": "http://mlcommons.org/croissant/1.0",
      "name": f"{report['dataset']}-{report['config']}",
      **prose,
      "version": report["version"],
      "distribution": [
          _file(table.name, "text/csv", files.sha256_of(table), table.stat().st_size),
          *(_file(s["file"], media_type, s["sha256"], s["bytes"]) for s in report["shards"]),
      ],
      "recordSet": [{
          "@type": "cr:RecordSet",
          "@id": "records",
          "name": "records",
          "description": "Where each record lies, whose it is, and how many pixels of each class"
                         " it has.",
          "key": {"@id": "records/key"},
          "field": [_field(name) for name in columns],
      }],
  }  # fmt: skip
  text = json.dumps(content, indent=1, ensure_ascii=False)
  (folder / NAME).write_text(text + "\n", encoding="utf-8")


def prose_of(
    description: str, citation: str, homepage: str, licenses: Sequence[License]
) -> dict[str, Any]:
  """Returns the entries that describe a dataset; without a stated licence, none is claimed."""
  return {
      "description": description,
      **({"citeAs": citation} if citation else {}),
      **({"license": [str(one) for one in licenses]} if licenses else {}),
      "url": homepage or "https://www.tensorflow.org/datasets",
  }


def read_prose(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the same entries of a built dataset; empty where it has no `croissant.json`."""
  path = folder / NAME
  content = files.read_json(path) if path.is_file() else {}
  if not isinstance(content, dict):
    raise InputError(f"{path} must be as the build wrote it. Build the dataset again.")
  return {name: content[name] for name in ("description", "citeAs", "license", "url")
          if name in content}  # fmt: skip


def _file(name: str, media_type: str, sha256: str, num_bytes: int) -> dict[str, Any]:
  return {
      "@type": "cr:FileObject",
      "@id": name,
      "name": name,
      "contentUrl": name,
      "contentSize": f"{num_bytes} B",
      "encodingFormat": media_type,
      "sha256": sha256,
  }


def _field(column: str) -> dict[str, Any]:
  field = {
      "@type": "cr:Field",
      "@id": f"records/{column}",
      "name": column,
      "dataType": "sc:Text" if column in _TEXT_COLUMNS else "sc:Integer",
      "source": {
          "fileObject": {"@id": RECORDS_NAME},
          "extract": {"column": column},
      },
  }
  if column.startswith("pixels_"):
    field["description"] = f"Labelled pixels of class {column.removeprefix('pixels_')}."
  elif column in _DESCRIPTIONS:
    field["description"] = _DESCRIPTIONS[column]
  return field
