"""The base of all dataset builders: from a raw folder to TFRecords, split by subject.

To add a dataset:
1. Make the folder `datasets/<name>/` with an empty `__init__.py`, `README.md` (source, licence,
   what was left out or changed, class table, commands), `CITATIONS.bib`, `TAGS.txt`.
2. In `<name>_dataset_builder.py` write `class Builder(VolumeBuilder)` for scans, or
   `class Builder(SegmentationBuilder)` for images, with VERSION, RELEASE_NOTES, HOMEPAGE, LICENSES,
   LAYOUT, SPLIT_SALT, MANUAL_DOWNLOAD_INSTRUCTIONS, BUILDER_CONFIGS: `RecordConfig`s that every raw
   folder can give, for `tfds build` builds them all. EXTRA_CONFIGS are built by name only.
3. Give it `label_scheme`, `intensity` and, for scans, `slice_plan` and `label_map`.
4. Write `find_cases(findings)`: walk `findings.root`, pair files, look at headers, and call
   `findings.add(Case(...))`, `.leave_out(file, why)` or `.problem(line)`. It writes nothing and
   reads no voxel. `raw_folder` has the checks; `raw_folder.note(findings)`, called last, names
   every file that no case uses.
   What only the folder as a whole can say, such as its class names, comes from `decide`.
5. For images write `slices_of(case, notes)`, a generator of `Slice`. It runs in a worker.
6. Add name and options to `catalog.OPTIONS`, the folder to `packages` in setup.cfg, and a test with
   `tfds.testing.DatasetBuilderTestCase` on a phantom.
HAS_LESIONS says that classes are lesions, several in a scan, which evaluation counts one by one.
PUBLISHED_SUBJECTS declares which subjects are codes of the publisher; others are kept where they
are codes by themselves, and become pseudonyms otherwise (`subject_names`).
A dataset may override also `extra_features`, `licenses` and `read_scan`. Options of its own go into
`datasets/<name>/options.py`, which loads no TFDS. Where the publisher fixed splits or folds, its
cases say so (`Case.split`, `Case.fold`); all else is decided in `case_splits.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pathlib
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from flexunet.core import config_fields
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, subject_splits
from flexunet.datasets.builder import (
    build_run,
    case_records,
    case_splits,
    identical_images,
    raw_folder,
)
from flexunet.datasets.builder.case_splits import CaseSplits
from flexunet.datasets.builder.croissant import License
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.record_options import RecordOptions, SplitOptions
from flexunet.datasets.builder.subject_names import NameOptions, SubjectNames
from flexunet.imaging.channels import channel_suffixes, image_features
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

Config = TypeVar("Config", bound="RecordConfig")


class RecordConfig(tfds.core.BuilderConfig):
  """A config as TFDS knows it: a name for a set of options.

  Attributes:
    OPTIONS: The class of its options; a dataset with options of its own has a subclass.
    options: Their values.
  """

  OPTIONS: ClassVar[type[RecordOptions]] = RecordOptions

  def __init__(self, name: str, description: str | None = None, **options: Any):
    super().__init__(name=name, description=description)
    self.options = config_fields.from_mapping(self.OPTIONS, options)

  def renamed(self: Config, name: str, options: RecordOptions | None = None) -> Config:
    """Returns a copy with another name, and other options where they are given."""
    other = copy.copy(self)
    other.name, other.options = name, options or self.options
    return other


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
  """One slice as a builder yields it.

  Attributes:
    index: Position in the volume; unique within the case.
    image: uint8 [H, W], or [H, W, 3] for colour images.
    label: Class ids uint8 [H, W], `IGNORED` where not counted; None when the case is unlabelled.
    spacing_mm: (row, column); NaN where unknown.
    slice_spacing_mm: NaN where unknown.
    extras: Values of the dataset's extra features.
    others: The further channels, like `image`.
  """

  index: int
  image: np.ndarray
  label: np.ndarray | None
  spacing_mm: tuple[float, float] = (float("nan"), float("nan"))
  slice_spacing_mm: float = float("nan")
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  others: tuple[np.ndarray, ...] = ()


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
  """Builds 2-D slices; see the head of this file for what a dataset must give.

  Attributes:
    num_workers: Processes that read cases; None takes all CPUs this process may use.
    release: Which of several published forms the raw folder holds; "" where there is one only.
    voxel_dtype: What the volumes of this build store.
    split_options: Who stands in which split; None leaves it to the options of the config.
    decided: What else the raw folder decides, from `decide`.
    name_options: How subjects are called.
    names: The names of a build, once its raw folder has been looked through.
  """

  HOMEPAGE: ClassVar[str] = ""
  LICENSES: ClassVar[tuple[License, ...]] = ()  # The source's; the records are under them too.
  LAYOUT: ClassVar[str] = ""  # One line: what the raw folder must look like.
  SPLIT_SALT: ClassVar[str] = "flexunet"
  # Regular expression of subjects whose names are codes of the publisher, whatever their letters.
  PUBLISHED_SUBJECTS: ClassVar[str] = ""
  EXTRA_CONFIGS: ClassVar[list[RecordConfig]] = []
  HAS_LESIONS: ClassVar[bool] = False

  num_workers: int | None = None
  release: str = ""
  voxel_dtype: np.dtype = np.dtype(np.int16)
  split_options: SplitOptions | None = None
  decided: Mapping[str, Any] = types.MappingProxyType({})
  name_options: NameOptions = NameOptions()
  names: SubjectNames | None = None

  def __init_subclass__(cls, skip_registration: bool = False, **kwargs):
    module = cls.__module__
    if cls.__name__ == "Builder" and "." not in module and not cls.__dict__.get("name"):
      # TFDS finds no name for a builder in a single file of any name.
      cls.name = module.removesuffix("_dataset_builder")
    if cls.MANUAL_DOWNLOAD_INSTRUCTIONS is None:  # TFDS hands no raw folder over without them.
      cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"The raw folder must hold {cls.LAYOUT or 'its scans'}."
    super().__init_subclass__(skip_registration=skip_registration, **kwargs)
    # TFDS derives these from the module's dotted name, which a remapped package breaks.
    source = epath.Path(inspect.getfile(cls)).resolve()
    cls.pkg_dir_path, cls.code_path = source.parent, source

  @classmethod
  def named_configs(cls) -> dict[str, RecordConfig]:
    """Returns {name: config} of all configs, also those that not every raw folder can give."""
    return {config.name: config for config in (*cls.BUILDER_CONFIGS, *cls.EXTRA_CONFIGS)}

  @property
  def options(self) -> Any:
    """The options of the config: an instance of its OPTIONS class."""
    return self.builder_config.options

  # What a dataset gives.

  def label_scheme(self) -> LabelScheme:
    """Returns the classes of the current config."""
    raise NotImplementedError

  def intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits, when the config has no window of its own."""
    return IntensityWindow("none")

  def slice_plan(self) -> SlicePlan | None:
    """Returns how volumes are cut, when the config has no plane of its own; None for images."""
    return None

  def image_channels(self) -> int:
    """Returns 1 for grey images, 3 for colour."""
    return 1

  def channel_names(self) -> tuple[str, ...]:
    """Returns the channels of a scan, each a volume of its own on one grid."""
    return ("image",)

  def other_intensities(self) -> tuple[IntensityWindow, ...]:
    """Returns how the intensities of each channel after the first become 8 bits."""
    return ()

  def in_plane_mm(self) -> tuple[float, float] | None:
    """Returns the (row, column) spacing to which slices are brought; None keeps it."""
    return None

  def licenses(self) -> tuple[License, ...]:
    """Returns the licences of what is built from the raw folder."""
    return self.LICENSES

  def extra_features(self) -> dict[str, Any]:
    """Returns features beyond the shared schema."""
    return {}

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    raise NotImplementedError

  def decide(self, findings: Findings) -> dict[str, Any]:
    """Returns what the raw folder decides for all cases, as JSON: the dataset's own entries.

    May read voxels, and puts what the user should know of it into `findings.choices`.
    """
    del findings
    return {}

  def slices_of(self, case: Case, notes: Notes) -> Iterator[Slice]:
    """Reads one case, in a worker process."""
    raise NotImplementedError

  # What follows from it.

  def active_plan(self) -> SlicePlan | None:
    """Returns how volumes are cut, by the plane of the config first."""
    return self.slice_plan()

  def active_intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits, by the window of the config first."""
    return self.intensity()

  def name_subjects(self, findings: Findings) -> SubjectNames:
    """Decides how records and report call the subjects and files of a raw folder.

    Raises:
      InputError: The key of the pseudonyms is damaged, or would lie below the data_dir.
    """
    self.names = SubjectNames(
        findings, self.name_options, self.PUBLISHED_SUBJECTS, pathlib.Path(self._data_dir_root)
    )
    return self.names

  def subject_in_records(self, subject: str) -> str:
    """Returns how what is written calls a subject of the raw folder."""
    return self.names.subject(subject) if self.names else subject

  def assign_splits(
      self,
      cases: Sequence[Case],
      joined: Iterable[Collection[str]] = (),
      loads: Mapping[str, float] | None = None,
  ) -> CaseSplits:
    """Returns which split and fold each case of a build gets.

    Args:
      cases: All of the build.
      joined: Groups of subjects that must stand on one side.
      loads: {subject: share of its pixels that is labelled}, where that is to be spread evenly.
    """
    options = self.split_options or self.options
    return case_splits.decide(
        cases, self.SPLIT_SALT, options, self.subject_in_records, joined, loads
    )

  def inspect_source(self, root: str | os.PathLike) -> Findings:
    """Looks through a raw folder and raises all its problems at once; writes nothing.

    Raises:
      InputError: When anything is wrong with it.
    """
    findings = Findings(pathlib.Path(root))
    if not findings.root.is_dir():
      findings.problem(f"{findings.root}: there is no such folder.")
    else:
      try:
        self.find_cases(findings)
      except OSError as error:
        findings.problem(str(raw_folder.unreadable(error)))
    findings.finish(self.LAYOUT)
    return findings

  def records_of(
      self, case: Case, fold: int, notes: Notes
  ) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yields (key, example, columns of the record table) of one case."""
    scheme = self.label_scheme()
    for cut in self.slices_of(case, notes):
      label = np.zeros(cut.image.shape[:2], np.uint8) if cut.label is None else cut.label
      pixels = scheme.count(label)
      key = f"{case.key}_{cut.index:04d}"
      channels = dict(zip(self._image_keys(), (cut.image, *cut.others), strict=True))
      example = {
          **{name: case_records.encode_png(pixels) for name, pixels in channels.items()},
          "label": case_records.encode_png(label),
          "slice_index": cut.index,
          "spacing_mm": np.asarray(cut.spacing_mm, np.float32),
          "slice_spacing_mm": np.float32(cut.slice_spacing_mm),
          "subject": case.subject,
          "volume": case.volume,
          "fold": fold,
          **cut.extras,
      }
      row = {
          "slice_index": cut.index,
          "height": label.shape[0],
          "width": label.shape[1],
          "pixels": tuple(int(count) for count in pixels),
          "content": identical_images.digests_of([cut.image]),
      }
      yield key, example, row

  def reason_to_drop(self, key: str, pixels: Sequence[int]) -> str:
    """Returns why the options leave a slice out of the training split; "" keeps it.

    Args:
      key: Of its record.
      pixels: Of each class, background first.
    """
    options, foreground_pixels = self.options, sum(pixels[1:])
    if 0 < foreground_pixels < options.min_foreground_pixels:
      return "fewer labelled pixels than min_foreground_pixels"
    if foreground_pixels == 0 and options.empty_share < 1:
      # The hash decides, not a random draw: the same slices stay in every build.
      draw = int(subject_splits.salted_hash(f"{self.SPLIT_SALT}:empty", key)[:8], 16) / 2**32
      if draw >= options.empty_share:
        return "no labelled pixel, by empty_slices"
    return ""

  def _info(self) -> tfds.core.DatasetInfo:
    info = self.dataset_info_from_configs(
        features=self._make_features(),
        homepage=self.HOMEPAGE or None,
        disable_shuffling=True,  # The order is ours: by salted hash, written once.
        supervised_keys=("image", "label"),
    )
    # TFDS would ask a cloud bucket for metadata of a dataset that cannot be there.
    info.initialize_from_bucket = lambda: None
    return info

  def _make_features(self) -> tfds.features.FeaturesDict:
    return slice_features(
        self.label_scheme(), self.extra_features(), self.image_channels(), self._image_keys()
    )

  def _image_keys(self) -> list[str]:
    """Returns the features of the channels: image, image_2, ..."""
    return image_features(len(self.channel_names()))

  @classmethod
  def for_reading(
      cls,
      config: str | Mapping[str, Any],
      release: str,
      voxel_dtype: str,
      decided: Mapping[str, Any],
  ) -> SegmentationBuilder:
    """Returns a builder that only reads cases, for a worker process.

    Args:
      config: Name of a config of the class, or name and options of another one.
      release, voxel_dtype, decided: As in `set_source`.
    """
    if not isinstance(config, str):
      config = cls.builder_config_cls(**config)
    # The folder does not exist and is never created.
    builder = cls(data_dir=pathlib.Path(__file__).with_name("none"), config=config)
    builder.set_source(release, np.dtype(voxel_dtype), decided)
    return builder

  def set_source(
      self, release: str, voxel_dtype: np.dtype, decided: Mapping[str, Any]
  ) -> None:
    """Takes what the raw folder decides for the whole build, before any case is read."""
    self.release, self.voxel_dtype, self.decided = release, voxel_dtype, decided
    if decided:
      self.info._features = self._make_features()

  def voxel_dtype_of(self, findings: Findings) -> np.dtype:
    """Returns the dtype that holds the voxels of all cases without loss."""
    del findings
    return self.voxel_dtype

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    """Replaces the serial generation of TFDS; called inside its temporary folder."""
    if download_config.max_examples_per_split == 0:
      return
    try:
      root = pathlib.Path(dl_manager.manual_dir)
    except AssertionError as error:  # So TFDS says that it is missing or empty.
      raise InputError(" ".join(str(error).split("\n"))) from error
    except OSError as error:
      raise raw_folder.unreadable(error) from error
    build_run.build(self, root, download_config)
    # TFDS writes the same again after this call, which is too late for their checksums.
    self.info.download_size = dl_manager.downloaded_size
    self.info.write_to_directory(self.data_dir)
    built_dataset.write_checksums(pathlib.Path(self.data_dir))

  def _split_generators(self, dl_manager):
    raise NotImplementedError("This builder writes its shards itself; see build_run.py.")

  def _generate_examples(self):
    raise NotImplementedError("This builder writes its shards itself; see build_run.py.")


def slice_features(
    scheme: LabelScheme,
    extras: Mapping[str, Any],
    image_channels: int = 1,
    image_keys: Sequence[str] = ("image",),
) -> tfds.features.FeaturesDict:
  """Returns the features of config `slices`: one upright 2-D slice.

  Args:
    scheme: Gives the label its class names.
    extras: Further features of the dataset.
    image_channels: 1, or 3 for colour images.
    image_keys: A feature for each channel of a scan.
  """
  images = {
      name: tfds.features.Image(
          shape=(None, None, image_channels),
          dtype=np.uint8,
          encoding_format="png",
          doc="Native in-plane resolution, upright; one intensity window per volume.",
      )
      for name in image_keys
  }
  return tfds.features.FeaturesDict({
      **images,
      "label": tfds.features.LabeledImage(
          labels=scheme.names, shape=(None, None, 1), encoding_format="png", doc="Class ids."
      ),
      "slice_index": tfds.features.Scalar(np.int32, doc="Position in the volume."),
      "spacing_mm": tfds.features.Tensor(
          shape=(2,), dtype=np.float32, doc="Row and column distance; NaN where unknown."
      ),
      "slice_spacing_mm": tfds.features.Scalar(
          np.float32, doc="Distance of neighbouring slices; NaN where unknown."
      ),
      **_identity(),
      **extras,
  })


def volume_features(
    scheme: LabelScheme,
    voxel_dtype: np.dtype,
    extras: Mapping[str, Any],
    num_channels: int = 1,
) -> tfds.features.FeaturesDict:
  """Returns the features of config `volumes`: one whole scan, lossless, axes as stored.

  Args:
    scheme: Its class names are in the label's documentation; the ids are those of `slices`.
    voxel_dtype: What the source stores.
    extras: Further features of the dataset, one value per scan.
    num_channels: Volumes of a scan; those after the first have features that end in _2, _3, ...
  """
  shape = (None, None, None)
  # tf.Example holds 32-bit floats only: what must stay float64 is stored as bytes.
  channels: dict[str, Any] = {}
  for end in channel_suffixes(num_channels):
    channels |= {
        f"image{end}": tfds.features.Tensor(
            shape=shape, dtype=voxel_dtype, encoding="zlib",
            doc="Stored numbers [i, j, k]; intensity = image * scale_slope + scale_inter.",
        ),
        f"scale_slope{end}": tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
        f"scale_inter{end}": tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
        f"source_dtype{end}": tfds.features.Text(doc="dtype of the source file."),
    }  # fmt: skip
  return tfds.features.FeaturesDict({
      **channels,
      "label": tfds.features.Tensor(
          shape=shape, dtype=np.uint8, encoding="zlib",
          doc="Class ids: " + ", ".join(f"{i} {name}" for i, name in enumerate(scheme.names)),
      ),
      "affine": tfds.features.Tensor(
          shape=(4, 4), dtype=np.float64, encoding="bytes", doc="(i, j, k, 1) to RAS+ mm."
      ),
      "oriented": tfds.features.Scalar(
          np.bool_, doc="False: the source states no orientation, the affine only its spacing."
      ),
      "spacing_mm": tfds.features.Tensor(
          shape=(3,), dtype=np.float64, encoding="bytes", doc="Voxel edges; NaN where unknown."
      ),
      **_identity(),
      **extras,
  })


def _identity() -> dict[str, Any]:
  return {
      "subject": tfds.features.Text(doc="Stable pseudonym of the person."),
      "volume": tfds.features.Text(doc="Stable pseudonym of the scan."),
      "fold": tfds.features.Scalar(
          np.int32, doc="Cross-validation fold 0..4 of the subject; -1: takes no part."
      ),
  }
