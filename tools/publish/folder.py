"""The folder of a published dataset, written in one step beside nothing else."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset
from flexunet.datasets.builder import croissant
from flexunet.datasets.built_dataset import CHECKSUMS_NAME, BuiltDataset
from flexunet.tools.dataset_report import page
from flexunet.tools.publish import card
from flexunet.tools.publish.checks import Check
from flexunet.tools.publish.licences import Decision

SUMS_NAME, CITATION_NAME = "SHA256SUMS", "CITATION.bib"
_REPORT_NAME = "dataset_report.html"
# Written for the copy; what lies there of the source is of another place or licence.
_WRITTEN = {croissant.NAME, CHECKSUMS_NAME, card.NAME, CITATION_NAME, SUMS_NAME, _REPORT_NAME,
            "dataset_report.png"}  # fmt: skip


def prose_of(dataset: BuiltDataset, decision: Decision) -> dict[str, Any]:
  """Returns what no table says of a dataset, with the licence under which it is passed on."""
  prose = croissant.read_prose(dataset.path)
  if not prose:
    info = dataset.info
    prose = croissant.prose_of(info.description, info.citation, info.homepage or "", ())
  if decision.terms:
    prose["license"] = [terms.url or terms.name for terms in decision.terms]
  return prose


def target_of(dataset: BuiltDataset, output: pathlib.Path) -> pathlib.Path:
  """Returns the folder NAME/CONFIG/VERSION in `output` that a dataset is published to.

  Raises:
    InputError: There is something, or nothing can be written.
  """
  report = dataset.report
  target = output.expanduser() / report["dataset"] / report["config"] / report["version"]
  if target.exists():
    raise InputError(
        f"--output_dir {output}: {target} is there already. Remove it, or name another folder."
    )
  files.check_writable(target, "--output_dir")
  return target


def write(
    dataset: BuiltDataset,
    target: pathlib.Path,
    prose: Mapping[str, Any],
    decision: Decision,
    checks: Sequence[Check],
    show_progress: bool = False,
) -> None:
  """Writes the folder; after a failure there is none.

  Shards are hard links where the file system allows, else copies.

  Args:
    dataset: The dataset; nothing in its folder is changed.
    target: New folder, whose last parts are those of the dataset.
    prose: As `croissant.write` takes them.
    decision: Under which licence it is passed on.
    checks: What was checked, for the card.
    show_progress: Draws a bar on standard error.

  Raises:
    InputError: A shard changed while it was copied.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=".publish-"))
  try:
    # The page of the report names the dataset by the last parts of its path.
    copy = work.joinpath(*target.parts[-3:])
    copy.mkdir(parents=True)
    for path in sorted(dataset.path.iterdir()):
      if path.is_file() and path.name not in _WRITTEN and not path.name.startswith("."):
        _link_or_copy(path, copy / path.name)
    croissant.write(copy, dataset.report, dict(prose))
    if cited := str(prose.get("citeAs", "")).strip():
      files.write_bytes(copy / CITATION_NAME, f"{cited}\n".encode())
    page.write_report(
        BuiltDataset(copy, dataset.report, dataset.rows), copy / _REPORT_NAME,
        show_progress=show_progress,
    )  # fmt: skip
    pictures = pathlib.Path(_REPORT_NAME).with_suffix(".png").name
    text = card.text(dataset, prose, decision, checks, pictures)
    files.write_bytes(copy / card.NAME, text.encode())
    built_dataset.write_checksums(copy)
    _write_sums(dataset, copy)
    os.replace(copy, target)
  finally:
    shutil.rmtree(work, ignore_errors=True)


def _link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
  try:
    os.link(source.resolve(), target)
  except OSError:  # Another file system, or one without hard links.
    shutil.copyfile(source, target)


def _write_sums(dataset: BuiltDataset, folder: pathlib.Path) -> None:
  """Writes the sha256 of every file in the form that `sha256sum -c` reads."""
  built = {shard["file"]: shard["sha256"] for shard in dataset.report["shards"]}
  lines = []
  for path in sorted(folder.iterdir()):
    digest = files.sha256_of(path)
    if digest != built.get(path.name, digest):
      raise InputError(f"{dataset.path / path.name}: changed while it was copied. Try again.")
    lines.append(f"{digest}  {path.name}\n")
  files.write_bytes(folder / SUMS_NAME, "".join(lines).encode())
