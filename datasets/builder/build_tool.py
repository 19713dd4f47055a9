"""Builds a dataset in one call, and cleans up after a failure."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, catalog, dataset_folders
from flexunet.datasets.builder.bucket_build import BuildFolders
from flexunet.datasets.builder.raw_folder import NothingFoundError
from flexunet.datasets.builder.record_options import SPLIT_FIELDS, split_options
from flexunet.datasets.builder.segmentation_builder import SegmentationBuilder
from flexunet.datasets.builder.subject_names import NameOptions

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


def build_dataset(
    dataset: str,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    num_workers: int | None = None,
    file_format: str | None = None,
    config_name: str | None = None,
    builder: str | os.PathLike | None = None,
    beam_options: str | None = None,
    subject_names: str = "auto",
    key_file: str | os.PathLike | None = None,
    **options: Any,
) -> pathlib.Path:
  """Builds a dataset from the folder that its publisher ships, as `flexunet build` does.

  Args:
    dataset: Name, or name/config, such as "hippocampus_t1w/left_right".
    manual_dir: Raw folder: the unpacked download, or its address (gs://...). It is not changed.
    data_dir: Folder of built datasets, or its address; it is created where there is none.
    overwrite: Builds again what is built already.
    num_workers: Processes that read scans; by default as many as there are CPUs.
    file_format: "tfrecord" (default) or "array_record".
    config_name: Names the built config, so that two of equal options can lie side by side.
    builder: File or folder of a builder of your own, whose code is run; `dataset` is its name.
    beam_options: Reads the cases on Apache Beam, by its options, such as
      "runner=FlinkRunner,flink_master=HOST:8081"; instead of `num_workers`.
    subject_names: "auto" keeps names that are codes and makes pseudonyms of the rest, "keep",
      "pseudonym".
    key_file: Where the key of the pseudonyms is kept; by default in the raw folder.
    **options: Those of the dataset, by the names of their flags, such as plane="axial".

  Returns:
    The version folder: data_dir/NAME/CONFIG/VERSION. In a bucket it is the path of its address,
    as which other functions take it.

  Raises:
    InputError: An unknown dataset or option, or all problems of the raw folder.
  """
  folders = BuildFolders(manual_dir, data_dir)
  make_builder = maker(
      dataset,
      data_dir=folders.data,
      num_workers=num_workers,
      options=options,
      config_name=config_name,
      file_format=file_format,
      builder_path=builder,
      name_options=NameOptions(
          subject_names=subject_names, key_file=os.fspath(key_file) if key_file else None
      ),
  )
  version_folder = make_builder().data_path
  folders.fetch_built(version_folder)
  if overwrite or not is_built(make_builder()):
    build(make_builder, folders.raw, folders.beam_options(beam_options))
    folders.publish(version_folder)
  folders.forget(version_folder)
  return pathlib.Path(folders.shown(version_folder))


def is_built(builder: SegmentationBuilder) -> bool:
  """Returns whether the dataset is built already, with the splits that are asked for.

  Raises:
    InputError: It is built, but with other splits.
  """
  folder = pathlib.Path(builder.data_path)
  if not dataset_folders.is_version(folder):
    return False
  asked = builder.split_options.asked() if builder.split_options else {}
  if asked and built_dataset.read_report(folder).get("split_options") != asked:
    raise InputError(
        f"{folder}: is built already, with other splits. --overwrite builds it again with those"
        " asked for; --config_name=NAME builds them beside it."
    )
  return True


def maker(
    dataset: str,
    *,
    data_dir: pathlib.Path,
    num_workers: int | None = None,
    options: Mapping[str, Any] | None = None,
    config_name: str | None = None,
    file_format: str | None = None,
    builder_path: str | os.PathLike | None = None,
    name_options: NameOptions | None = None,
) -> Callable[[], SegmentationBuilder]:
  """Returns a function that returns a new builder; for the arguments see `build_dataset`."""

  options = dict(options or {})
  # Read once: a build puts the folder aside that a splits file may lie in.
  splits = split_options(options)
  of_records = {name: value for name, value in options.items() if name not in SPLIT_FIELDS}

  def make_builder() -> SegmentationBuilder:
    builder = catalog.builder(
        dataset, data_dir, options=of_records, config_name=config_name, file_format=file_format,
        builder_path=builder_path,
    )  # fmt: skip
    builder.num_workers, builder.split_options = num_workers, splits
    builder.name_options = name_options or NameOptions()
    return builder

  return make_builder


def build(
    make_builder: Callable[[], SegmentationBuilder],
    manual_dir: pathlib.Path,
    beam_options: str | None = None,
) -> SegmentationBuilder:
  """Builds a dataset, also where it is built already, and returns its builder.

  After a failure nothing is left but what was there before.

  Raises:
    InputError: All problems of the raw folder, or which dataset it is instead.
  """
  version_folder = pathlib.Path(make_builder().data_path)
  with recognising(manual_dir), _set_aside(version_folder):
    # The builder from before would still hold the splits of the old dataset.
    builder = make_builder()
    _build_new(builder, manual_dir, beam_options)
  return builder


@contextlib.contextmanager
def recognising(manual_dir: pathlib.Path) -> Iterator[None]:
  """Adds to the error about a raw folder of another dataset which one it looks like."""
  try:
    yield
  except NothingFoundError as error:
    fitting = catalog.recognise(manual_dir)
    hint = f" The folder looks like {' or '.join(fitting)}." if fitting else ""
    raise InputError(f"{error}{hint}") from error


@contextlib.contextmanager
def _set_aside(version_folder: pathlib.Path) -> Iterator[None]:
  """Puts an existing dataset out of the way, and back when the new one fails."""
  aside = dataset_folders.set_aside(version_folder)
  if version_folder.exists():
    shutil.rmtree(aside, ignore_errors=True)
    version_folder.rename(aside)
  try:
    yield
  except BaseException:
    if aside.exists() and not version_folder.exists():
      aside.rename(version_folder)
    raise
  shutil.rmtree(aside, ignore_errors=True)


def _build_new(
    builder: SegmentationBuilder, manual_dir: pathlib.Path, beam_options: str | None
) -> None:
  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  if beam_options is not None:
    # Of a build on Beam alone; its import takes seconds.
    from flexunet.datasets.builder import beam_cases

    config.beam_options = beam_cases.options_of(beam_options)
  version_folder = pathlib.Path(builder.data_path)
  data_dir = version_folder
  while data_dir.name != builder.name:
    data_dir = data_dir.parent
  data_dir = data_dir.parent
  created = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
  _quiet(builder)
  try:
    builder.download_and_prepare(download_config=config)
  except OSError as error:
    if error.errno in _NOT_WRITABLE:
      raise InputError(
          f"--data_dir {data_dir}: cannot be written ({error.strerror}). Make room, or name another"
          " folder."
      ) from error
    raise
  finally:
    _remove_empty(data_dir / "downloads")
    if not version_folder.exists():
      _remove_empty(version_folder.parent)
      _remove_leftovers(data_dir / builder.name)
      for folder in created:
        _remove_empty(folder)


def _quiet(builder: Any) -> None:
  """Silences TFDS's own announcement, which speaks of downloads."""
  builder._log_download_bytes = lambda: None
  builder._log_download_done = lambda: None


def _remove_empty(folder: pathlib.Path) -> None:
  """Removes a folder and its subfolders where they hold no file."""
  if not folder.is_dir():
    return
  for child in list(folder.iterdir()):
    if child.is_dir():
      _remove_empty(child)
  if not any(folder.iterdir()):
    folder.rmdir()


def _remove_leftovers(folder: pathlib.Path) -> None:
  """Removes TFDS's note of the default config when no config was built, and empty folders."""
  if not folder.is_dir():
    return
  if {child.name for child in folder.rglob("*") if child.is_file()} <= {"metadata.json"}:
    shutil.rmtree(folder)
