"""The builder of ready-made folders: palettes, pairing, subjects by name, published sides."""

import json
import pathlib
import tempfile

import build_samples
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.image_mask import folders, image_mask_dataset_builder, masks
from flexunet.datasets.image_mask.options import ImageMaskOptions
from flexunet.datasets.published_palettes import PRESETS

NAME = "image_mask"
SHAPE = (20, 30)
RED = (255, 0, 0)


def write_pair(folder, stem, color=RED, image_suffix="png", mask_suffix="png", shape=SHAPE):
  """Writes one picture, different for each name, and a mask with a square of 36 pixels."""
  generator = np.random.default_rng(sum(map(ord, str(folder) + stem)))
  for kind in ("images", "masks"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  image = np.repeat(generator.integers(0, 255, (*shape, 1)), 3, axis=-1).astype(np.uint8)
  Image.fromarray(image).save(folder / "images" / f"{stem}.{image_suffix}")
  mask = np.zeros((*shape, 3), np.uint8)
  mask[8:16, 8:16] = color
  Image.fromarray(mask).save(folder / "masks" / f"{stem}.{mask_suffix}")


def write_tree(root, color=RED):
  for side, subjects in (("train", (1001, 1002)), ("valid", (1003,)), ("test", (1004,))):
    for subject in subjects:
      for number in (9, 10):
        write_pair(root / side, f"{subject}_{number}", color)
  return root


class ImageMaskTest(tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks."""

  DATASET_CLASS = image_mask_dataset_builder.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ("binary",)
  SPLITS = {"train": 4, "validation": 2, "test": 2}  # noqa: RUF012

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    cls.EXAMPLE_DIR = str(write_tree(pathlib.Path(cls._folder.name), (255, 255, 255)))
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls._folder.cleanup()


def build(raw, out, config="hippocampus_t1w", config_name=None, **options):
  return build_samples.build(
      f"{NAME}/{config}", raw, out, options=options or None, config_name=config_name)


@pytest.mark.parametrize(
    ("stem", "subject", "position"),
    [
        ("1001_130", "1001", 130),
        ("100003_128", "100003", 128),
        ("Ischemic_0539025_004", "Ischemic_0539025", 4),
        ("barrdistorted_1001_0.3_0.3_Hemorrhagic_075_16", "Hemorrhagic_075", 16),
        ("10040_HFH_017", "HFH_017", 10040),
        ("axial_10084_HFH_010", "HFH_010", 10084),
        ("GU001_77", "GU001", 77),
        ("10185", None, None),
        ("scan of someone", None, None),
    ],
)
def test_the_published_names_tell_subject_and_slice(stem, subject, position):
  found = folders.parse(stem, folders.compile_rules(""))
  assert (found.subject, found.slice_index) == (subject, position)


@pytest.mark.parametrize("pattern", ["(", "no group", "(?P<slice>.)"])
def test_a_pattern_must_name_the_subject(pattern):
  with pytest.raises(InputError, match="subject_pattern must"):
    ImageMaskOptions(subject_pattern=pattern)


def test_published_sides_are_kept_and_slices_are_in_numeric_order(tmp_path):
  builder = build(write_tree(tmp_path / "raw"), tmp_path / "out")
  report = build_samples.report_of(builder)
  assert {name: split["subjects"] for name, split in report["splits"].items()} == {
      "train": ["1001", "1002"], "validation": ["1003"], "test": ["1004"]}
  assert report["warnings"] == []
  assert {row["key"] for row in build_samples.rows_of(builder) if row["subject"] == "1001"} == {
      "1001_0009", "1001_0010"}
  assert all(row["pixels_hippocampus"] == "64" for row in build_samples.rows_of(builder))


def test_a_subject_on_two_published_sides_is_named_and_the_sides_are_kept(tmp_path):
  raw = write_tree(tmp_path / "raw")
  write_pair(raw / "test", "1001_11")
  builder = build(raw, tmp_path / "out")
  [warning] = build_samples.report_of(builder)["warnings"]
  assert warning.startswith("Subject 1001 stands on two published sides: test, train.")
  sides = [row["split"] for row in build_samples.rows_of(builder) if row["subject"] == "1001"]
  assert sorted(sides) == ["test", "train", "train"]


def test_a_split_by_subject_mends_it(tmp_path):
  raw = write_tree(tmp_path / "raw")
  write_pair(raw / "test", "1001_11")
  builder = build(raw, tmp_path / "out", split="subject")
  rows = build_samples.rows_of(builder)
  assert len({row["split"] for row in rows if row["subject"] == "1001"}) == 1
  assert len(rows) == 9 and len({row["split"] for row in rows}) == 3


def test_a_plain_folder_is_split_by_subject(tmp_path):
  for subject in range(5):
    write_pair(tmp_path / "raw", f"{subject}_1")
  report = build_samples.report_of(build(tmp_path / "raw", tmp_path / "out"))
  assert {name: s["num_subjects"] for name, s in report["splits"].items()} == {
      "train": 3, "validation": 1, "test": 1}


def test_names_without_a_subject_count_one_by_one_and_the_build_says_so(tmp_path):
  for stem in ("10185", "10186", "10187"):
    write_pair(tmp_path / "raw" / "train", stem)
  report = build_samples.report_of(build(tmp_path / "raw", tmp_path / "out"))
  assert report["splits"]["train"]["num_subjects"] == 3
  assert any("3 of 3 file names, such as 10185, name no subject" in w for w in report["warnings"])


def test_a_given_pattern_decides_and_must_fit_every_name(tmp_path):
  for stem in ("13223", "13224", "14101"):
    write_pair(tmp_path / "raw" / "train", stem)
  pattern = r"1(?P<subject>\d\d)(?P<slice>\d\d)"
  builder = build(tmp_path / "raw", tmp_path / "out", subject_pattern=pattern)
  assert {row["key"] for row in build_samples.rows_of(builder)} == {"32_0023", "32_0024", "41_0001"}
  write_pair(tmp_path / "raw" / "train", "other")
  with pytest.raises(InputError, match="does not match 1, such as other"):
    build(tmp_path / "raw", tmp_path / "again", subject_pattern=pattern)


def test_augmented_copies_share_the_subject_and_are_numbered_anew(tmp_path):
  for stem in ("Hemorrhagic_075_16", "barrdistorted_1001_0.3_0.3_Hemorrhagic_075_16"):
    write_pair(tmp_path / "raw" / "train", stem)
  builder = build(tmp_path / "raw", tmp_path / "out", config="brain_stroke_ct")
  rows = build_samples.rows_of(builder)
  assert {row["subject"] for row in rows} == {"Hemorrhagic_075"}
  assert {row["slice_index"] for row in rows} == {"0", "1"}


def test_suffixes_of_image_and_mask_may_differ_and_jpeg_masks_decode(tmp_path):
  write_pair(tmp_path / "raw" / "train", "1_1", image_suffix="jpg", mask_suffix="jpeg",
             shape=(64, 96))  # fmt: skip
  builder = build(tmp_path / "raw", tmp_path / "out")
  [row] = build_samples.rows_of(builder)
  assert int(row["pixels_hippocampus"]) == pytest.approx(64, abs=8)
  assert build_samples.report_of(builder)["volume_facts"]["1"]["off_palette_share"] > 0


def records_of(builder):
  """Returns {volume and slice: example} of all records."""
  return {
      (example["volume"], int(example["slice_index"])): example
      for split in builder.info.splits
      for example in tfds.as_numpy(builder.as_dataset(split))
  }


def numpy_twin(path, array, image_mask):
  """Replaces an image or mask by a NumPy file: of one array, or of both named."""
  path.unlink()
  if image_mask is None:
    np.save(path.with_suffix(".npy"), array)
  else:
    np.savez_compressed(path.with_suffix(".npz"), **image_mask)


@pytest.mark.parametrize("form", ["ids", "one-hot", "colours"])
def test_tiff_images_and_masks_of_numpy_build_the_records_of_their_png(tmp_path, form):
  raw = write_tree(tmp_path / "raw")
  expected = records_of(build(raw, tmp_path / "png"))
  for path in raw.rglob("images/*.png"):
    Image.open(path).convert("L").save(path.with_suffix(".tif"))
    path.unlink()
  for path in raw.rglob("masks/*.png"):
    colours = np.asarray(Image.open(path))
    ids = (colours[..., 0] > 0).astype(np.int64)
    array = {"ids": ids, "one-hot": np.eye(2)[ids], "colours": colours}[form]
    both = {"image": colours[..., 1], "mask": array} if form == "one-hot" else None
    numpy_twin(path, array, both)
  found = records_of(build(raw, tmp_path / "numpy"))
  assert found.keys() == expected.keys()
  for key, example in expected.items():
    np.testing.assert_array_equal(found[key]["image"], example["image"])
    np.testing.assert_array_equal(found[key]["label"], example["label"])


def test_in_between_colours_go_to_the_nearer_class_and_their_share_is_reported(tmp_path):
  folder = tmp_path / "raw" / "train"
  write_pair(folder, "1_1")
  path = folder / "masks" / "1_1.png"
  mask = np.array(Image.open(path))
  mask[8, 8:16], mask[7, 8:16] = (200, 0, 0), (55, 0, 0)
  Image.fromarray(mask).save(path)
  builder = build(tmp_path / "raw", tmp_path / "out")
  assert build_samples.rows_of(builder)[0]["pixels_hippocampus"] == "64"
  share = build_samples.report_of(builder)["volume_facts"]["1"]["off_palette_share"]
  assert share == pytest.approx(16 / 600, abs=1e-6)
  with pytest.raises(InputError, match=r"1_1\.png: 2\.7 % .* the limit is 2 %"):
    build(tmp_path / "raw", tmp_path / "again", off_palette_limit=0.02)


@pytest.mark.parametrize(
    ("color", "config", "message"),
    [
        (RED, "ms_lesion_mri", r"64 of its 64 painted pixels are of colours foreign .*255, 0, 0"),
        ((210, 80, 0), "brain_stroke_ct", r"no pixel has the colour of a class.*=brain_ich_ct\."),
        ((255, 255, 255), "hippocampus_t1w", r"foreign to the palette.*fit --palette=binary\."),
        ((10, 10, 200), "hippocampus_t1w", "Is --palette the one of these masks"),
    ],
)
def test_masks_of_another_palette_are_refused_by_their_colours(tmp_path, color, config, message):
  write_pair(tmp_path / "raw" / "train", "1_1", color=color)
  with pytest.raises(InputError, match=message):
    build(tmp_path / "raw", tmp_path / "out", config=config)
  assert not list((tmp_path / "out").rglob("*.tfrecord*"))


def test_a_palette_file_gives_names_and_colours_and_leaves_no_path(tmp_path):
  palette = tmp_path / "colours.json"
  palette.write_text(json.dumps({"background": [0, 0, 0], "tumour": [10, 200, 30]}))
  write_pair(tmp_path / "raw" / "train", "1_1", color=(10, 200, 30))
  builder = build(tmp_path / "raw", tmp_path / "out", config="binary", palette=str(palette))
  report = build_samples.report_of(builder)
  assert report["label_scheme"][1] == {"name": "tumour", "color": [10, 200, 30]}
  assert str(tmp_path) not in json.dumps(report)
  assert build_samples.rows_of(builder)[0]["pixels_tumour"] == "64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "a palette must be"),
        ('{"a": [0, 0]}', "a palette must be"),
        ('{"a": [0, 0, 0]}', "1 to 255 classes"),
        ('{"a": [0, 0, 0], "b": [0, 0, 0]}', "must not share a colour"),
        ('{"a": [0, 0, 0], "a": [1, 0, 0]}', "Repeated: a"),
        ('{"a": [0, 0, 0], "b": [300, 0, 0]}', "0..255"),
        ("{", "readable JSON"),
    ],
)
def test_a_bad_palette_file_is_refused(tmp_path, text, message):
  (tmp_path / "p.json").write_text(text)
  with pytest.raises(InputError, match=message):
    masks.palette_scheme(str(tmp_path / "p.json"))


def test_an_unknown_preset_gets_the_nearest_spelling():
  with pytest.raises(InputError, match="'hippocampus_t1w'"):
    masks.palette_scheme("hipocampus_t1w")


def test_two_configs_of_different_colours_do_not_share_a_folder():
  names = set()
  for color in ((1, 2, 3), (1, 2, 4)):
    options = {"palette": "custom", "palette_colors": (("background", (0, 0, 0)), ("a", color))}
    names.add(catalog.builder(f"{NAME}/binary", "out", options=options).builder_config.name)
  assert len(names) == 2


def test_a_config_can_be_named_so_that_two_folders_lie_side_by_side(tmp_path):
  write_pair(tmp_path / "raw" / "train", "1_1")
  builder = build(tmp_path / "raw", tmp_path / "out", config_name="mine")
  assert pathlib.Path(builder.data_path).parts[-2] == "mine"
  with pytest.raises(InputError, match="folder name"):
    catalog.builder(f"{NAME}/binary", tmp_path, config_name="../mine")


def test_colour_pictures_need_to_be_asked_for(tmp_path):
  write_pair(tmp_path / "raw" / "train", "1_1")
  path = tmp_path / "raw" / "train" / "images" / "1_1.png"
  picture = np.array(Image.open(path))
  picture[..., 0] = 255 - picture[..., 0]
  Image.fromarray(picture).save(path)
  with pytest.raises(InputError, match="must be a grey image"):
    build(tmp_path / "raw", tmp_path / "out")
  builder = build(tmp_path / "raw", tmp_path / "again", image_channels=3)
  [example] = tfds.as_numpy(builder.as_dataset("train"))
  np.testing.assert_array_equal(example["image"], picture)


GREY_RAMP = [level for value in range(256) for level in (value,) * 3]
# Colours for the eye, as labelling programs give them: black, dark red, green, olive.
OWN_COLORS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def write_ids(raw, values, palette=None, suffix="png"):
  """Replaces the square of each mask by one of `values`, in turn; `palette` makes it indexed."""
  for number, path in enumerate(sorted(raw.rglob("masks/*.png"))):
    ids = np.zeros(SHAPE, np.uint8)
    ids[8:16, 8:16] = values[number % len(values)]
    image = Image.fromarray(ids)
    if palette:
      image.putpalette(palette)
    path.unlink()
    image.save(path.with_suffix(f".{suffix}"))
  return raw


@pytest.mark.parametrize(
    ("values", "palette", "config", "classes"),
    [
        ((1,), None, "binary", {"foreground"}),
        ((1,), GREY_RAMP, "binary", {"foreground"}),
        ((1,), OWN_COLORS, "binary", {"foreground"}),
        ((5,), None, "binary", {"foreground"}),
        ((2,), None, "binary", {"foreground"}),
        ((1, 2), None, "brain_stroke_ct", {"hemorrhagic", "ischemic"}),
        ((2, 1), OWN_COLORS, "brain_stroke_ct", {"hemorrhagic", "ischemic"}),
    ],
)
def test_masks_of_class_ids_are_read_as_such_and_the_build_says_so(
    tmp_path, values, palette, config, classes
):
  raw = write_ids(write_tree(tmp_path / "raw"), values, palette)
  builder = build(raw, tmp_path / "out", config=config)
  report, rows = build_samples.report_of(builder), build_samples.rows_of(builder)
  assert sum("are read as class ids (0 background" in line for line in report["warnings"]) == 1
  found = {name for row in rows for name in classes if row[f"pixels_{name}"] == "64"}
  assert found == classes and all(row["pixels_background"] == "536" for row in rows)


def test_a_palette_image_in_the_colours_of_the_classes_is_read_by_its_colours(tmp_path):
  raw = write_tree(tmp_path / "raw")
  # Index 1 is ischemic, the second class: its colour counts, not its number.
  write_ids(raw, (1,), [0, 0, 0, 0, 255, 0, 255, 0, 0])
  builder = build(raw, tmp_path / "out", config="brain_stroke_ct")
  assert {row["pixels_ischemic"] for row in build_samples.rows_of(builder)} == {"64"}
  assert build_samples.report_of(builder)["warnings"] == []


@pytest.mark.parametrize(
    ("values", "palette", "suffix", "message"),
    [
        ((2, 3), None, "png", "hold 0, 2, 3, which are neither colours .* nor ids 0..1"),
        ((5,), None, "jpg", "blurs class ids: store them as PNG"),
        # Red is a colour of another preset, not a number.
        ((1,), [0, 0, 0, 255, 0, 0], "png", "Its colours fit --palette=brain_stroke_ct"),
    ],
)
def test_masks_that_fit_neither_reading_are_refused(tmp_path, values, palette, suffix, message):
  raw = write_ids(write_tree(tmp_path / "raw"), values, palette, suffix)
  with pytest.raises(InputError, match=message):
    build(raw, tmp_path / "out", config="binary")


def test_a_mask_of_ids_among_masks_of_colours_is_refused(tmp_path):
  raw = write_tree(tmp_path / "raw")
  write_ids(raw / "valid", (1,))
  with pytest.raises(InputError, match=r"1003_\d+\.png: holds values 0, 1 only"):
    build(raw, tmp_path / "out")


def test_empty_masks_are_empty_in_either_reading(tmp_path):
  raw = write_ids(write_tree(tmp_path / "raw"), (1, 0))
  builder = build(raw, tmp_path / "out", config="binary")
  assert [row["pixels_foreground"] for row in build_samples.rows_of(builder)].count("64") == 4


def warnings_of(raw, out, config="hippocampus_t1w"):
  return build_samples.report_of(build(raw, out, config=config))["warnings"]


def test_swapped_masks_are_named(tmp_path):
  raw = write_tree(tmp_path / "raw")
  for path in sorted((raw / "train" / "masks").iterdir()):
    mask = np.zeros((*SHAPE, 3), np.uint8)
    mask[1:, 1:] = RED
    Image.fromarray(mask).save(path)
  [warning] = warnings_of(raw, tmp_path / "out")
  assert warning.startswith("Split train: 4 of 4 labels, such as 100")
  assert "foreground and background swapped?" in warning


def test_a_split_without_foreground_is_named(tmp_path):
  raw = write_tree(tmp_path / "raw")
  for path in (raw / "valid" / "masks").iterdir():
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(path)
  [warning] = warnings_of(raw, tmp_path / "out")
  assert warning.startswith("Split validation has no foreground: all 2 labels are background.")


def test_a_class_that_a_split_lacks_is_named(tmp_path):
  raw = write_tree(tmp_path / "raw")
  write_pair(raw / "train", "1001_9", color=(0, 255, 0))
  assert warnings_of(raw, tmp_path / "out", "brain_stroke_ct") == [
      "Class ischemic occurs in train, but not in validation, test."]


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_turned_image_or_mask_is_refused(tmp_path, kind):
  raw = write_tree(tmp_path / "raw")
  path = raw / "train" / kind / "1001_9.png"
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by a quarter.
  with Image.open(path) as image:
    image.copy().save(path, exif=exif)
  with pytest.raises(InputError, match=rf"{kind}/1001_9\.png: its EXIF orientation must be 1"):
    build(raw, tmp_path / "out")


def _alone(raw):
  (raw / "train" / "masks" / "1001_9.png").unlink()


def _twin(raw):
  path = raw / "train" / "images" / "1001_9.png"
  path.with_suffix(".jpg").write_bytes(path.read_bytes())


def _other_size(raw):
  Image.fromarray(np.zeros((20, 29, 3), np.uint8)).save(raw / "train" / "masks" / "1001_9.png")


def _transparent(raw):
  Image.fromarray(np.zeros((20, 30, 4), np.uint8)).save(raw / "train" / "images" / "1001_9.png")


def _two_datasets(raw):
  (raw / "b").mkdir()
  for side in ("train", "valid", "test"):
    (raw / "a").mkdir(exist_ok=True)
    (raw / side).rename(raw / "a" / side)
  write_pair(raw / "b" / "train", "1_1")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_alone, "images/1001_9.png: has no mask of its name"),
        (_twin, "1001_9.png: duplicate of"),
        (_other_size, "a mask has the size of its image"),
        (_transparent, "without transparency"),
        (_two_datasets, "holds 2 datasets: a, b"),
        (lambda raw: [path.unlink() for path in raw.rglob("*.png")], "nothing of this dataset"),
    ],
)
def test_a_folder_with_a_fault_is_refused(tmp_path, spoil, message):
  raw = write_tree(tmp_path / "raw")
  spoil(raw)
  builder = catalog.builder(f"{NAME}/hippocampus_t1w", tmp_path / "out")
  with pytest.raises(InputError, match=message):
    builder.inspect_source(raw)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["brain_ich_ct", "brain_stroke_ct", "full_head_t1w",
                                    "hippocampus_t1w", "ms_lesion_mri", "hfh_slices"])  # fmt: skip
def test_published_folders_build_with_the_counts_of_their_files(realdata, tmp_path, folder):
  raw = realdata / "image_mask" / folder
  builder = build(raw, tmp_path, config="binary" if folder == "hfh_slices" else folder)
  names = {"train": "train", "valid": "validation", "test": "test"}
  expected = {name: len(list((raw / side / "images").iterdir()))
              for side, name in names.items() if (raw / side).is_dir()}  # fmt: skip
  splits = build_samples.report_of(builder)["splits"]
  assert {name: s["num_records"] for name, s in splits.items()} == expected
  assert set(PRESETS) >= {builder.builder_config.name}


def test_masks_of_one_class_may_be_cut_at_a_grey_level(tmp_path):
  for side, subject in (("train", 1001), ("valid", 1002), ("test", 1003)):
    write_pair(tmp_path / "raw" / side, f"{subject}_9", (255, 255, 255))
    path = tmp_path / "raw" / side / "masks" / f"{subject}_9.png"
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:12, 8:16], mask[12:16, 8:16] = 79, 80  # Far from both colours of the palette.
    Image.fromarray(mask).save(path)
  builder = build_samples.build(
      NAME, tmp_path / "raw", tmp_path / "data", options={"mask_threshold": 80}
  )
  [record] = builder.as_dataset(split="train").as_numpy_iterator()
  assert record["label"][..., 0].sum() == 4 * 8 and (record["label"][12:16, 8:16] == 1).all()


def test_a_grey_level_divides_in_two_only():
  with pytest.raises(InputError, match="custom has 3 classes"):
    ImageMaskOptions(
        mask_threshold=80, palette_colors={"background": (0, 0, 0), "a": RED, "b": (0, 255, 0)}
    )
