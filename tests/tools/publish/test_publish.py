"""`flexunet publish`: what is refused, and what is written."""

import json
import pathlib
import shutil
import subprocess
import sys

import build_samples
import mlcroissant
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset
from flexunet.datasets.builder import subject_names
from flexunet.tools import verify_records
from flexunet.tools.publish import __main__ as publish
from flexunet.tools.publish import checks, contents, faces, folder, licences

LOOKED = "--faces=A phantom: nobody's face."


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Four subjects of the MS phantom, whose licence is CC BY; two modalities are left out."""
  root = tmp_path_factory.mktemp("publish")
  raw = build_samples.raw_folder("ms_lesion_mri", root / "raw")
  return pathlib.Path(build_samples.build("ms_lesion_mri", raw, root / "data").data_path)


def start(*words) -> None:
  publish.main(publish._PROGRAM.parse(["publish", *map(str, words)]))


def test_what_is_written_is_whole_and_reads_anywhere(built, tmp_path, capsys):
  before = {path.name: path.read_bytes() for path in built.iterdir()}
  start(built, f"--output_dir={tmp_path}", LOOKED)
  target = tmp_path / "ms_lesion_mri" / "t2" / "1.0.0"
  assert str(target) in capsys.readouterr().out
  assert {path.name: path.read_bytes() for path in built.iterdir()} == before
  assert [path.name for path in tmp_path.rglob(".*")] == []
  # By the tools of anybody: sha256sum, TFDS, a Croissant reader.
  summed = subprocess.run(
      ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=target, capture_output=True, check=True
  )
  names = {path.name for path in target.iterdir()} - {"SHA256SUMS"}
  assert {line.split(b":")[0].decode() for line in summed.stdout.splitlines()} == names
  assert not verify_records.verify(built_dataset.open_folder(target)).problems
  info = tfds.builder_from_directory(target).info
  rows = built_dataset.open_folder(target).rows
  assert sum(split.num_examples for split in info.splits.values()) == len(rows)
  read = mlcroissant.Dataset(jsonld=str(target / "croissant.json"))
  assert [one["records/key"].decode() for one in read.records("records")] == [
      row["key"] for row in rows
  ]


def test_the_card_says_whose_it_is_and_what_it_holds(built, tmp_path):
  start(built, f"--output_dir={tmp_path}", LOOKED)
  target = tmp_path / "ms_lesion_mri" / "t2" / "1.0.0"
  text = (target / "README.md").read_text(encoding="utf-8")
  report = json.loads((built / "build_report.json").read_text())
  assert text.startswith("---\nlicense:\n- cc-by-4.0\n")
  assert "Conditions: name the authors." in text and "@article{muslim2022ms" in text
  assert "A phantom: nobody's face." in text
  for split, entry in report["splits"].items():
    assert f"| {split} | {entry['num_subjects']} | {entry['num_volumes']} |" in text
  lesion = sum(entry["pixels"]["lesion"] for entry in report["splits"].values())
  assert f"| 1 | lesion | {lesion:,} |" in text
  assert (target / "dataset_report.png").stat().st_size and "](dataset_report.png)" in text
  assert "muslim2022ms" in (target / "CITATION.bib").read_text()
  croissant = json.loads((target / "croissant.json").read_text())
  assert croissant["license"] == ["https://creativecommons.org/licenses/by/4.0/"]


def test_a_second_time_and_a_bad_place_are_refused(built, tmp_path):
  with pytest.raises(InputError, match="--output_dir must be given"):
    start(built)
  (tmp_path / "ms_lesion_mri" / "t2" / "1.0.0").mkdir(parents=True)
  with pytest.raises(InputError, match="is there already"):
    start(built, f"--output_dir={tmp_path}")


def refused(capsys, *words) -> str:
  with pytest.raises(SystemExit) as stop:
    start(*words)
  assert stop.value.code == 1
  return capsys.readouterr().err


def test_everything_in_the_way_is_named_at_once(tmp_path, capsys):
  """A folder of scans: no licence, too small to tell of faces, kept names that are dates."""
  raw = build_samples.raw_folder("scan_label", tmp_path / "raw")
  for path in sorted(raw.rglob("*")):
    if path.is_file() and "002" in path.name:
      path.rename(path.with_name(path.name.replace("002", "20190304")))
  builder = build_samples.build("scan_label", raw, tmp_path / "data", options={})
  told = refused(capsys, builder.data_path, f"--output_dir={tmp_path / 'out'}")
  assert "licence: Ask the publisher" in told and "--licence=SPDX-ID" in told
  assert f"faces: {'Strip the skulls'}" in told and faces.TOO_SMALL in told
  assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(built, tmp_path, capsys):
  start(built, "--dry_run", LOOKED)
  shown = capsys.readouterr().out
  assert [line.split()[:2] for line in shown.splitlines() if line[:1].isalpha()][:6] == [
      [name, "passed"]
      for name in ("licence", "records", "splits", "faces", "privacy", "croissant")
  ]
  assert "Nothing is in the way" in shown


def test_the_restricted_release_of_ct_ich_is_refused(tmp_path, capsys):
  """v1.3.1, the scans; a licence given by the user does not help."""
  raw = build_samples.raw_folder("brain_ich_ct/nifti", tmp_path / "raw")
  builder = build_samples.build("brain_ich_ct", raw, tmp_path / "data")
  for words in ((), ("--licence=CC-BY-4.0",)):
    told = refused(capsys, builder.data_path, f"--output_dir={tmp_path / 'out'}", LOOKED, *words)
    assert "forbids passing the records on" in told and "Keep the dataset to yourself" in told
  assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_refused(built, tmp_path, capsys):
  copy = tmp_path / "ms_lesion_mri" / "t2" / "1.0.0"
  shutil.copytree(built, copy)
  shard = next(path for path in sorted(copy.glob("*.tfrecord*")) if path.stat().st_size)
  data = bytearray(shard.read_bytes())
  data[40] ^= 255
  shard.write_bytes(data)
  told = refused(capsys, copy, "--dry_run", LOOKED)
  assert "records: Build the dataset again" in told and shard.name in told


def dataset_with(built: pathlib.Path, subject: str) -> built_dataset.BuiltDataset:
  opened = built_dataset.open_folder(built)
  rows = [dict(row) for row in opened.rows]
  first = rows[0]["subject"]
  for row in rows:
    row["subject"] = subject if row["subject"] == first else row["subject"]
  return built_dataset.BuiltDataset(built, opened.report, rows)


@pytest.mark.parametrize(
    ("subject", "passes"),
    [("ms_007", True), ("subject_0123456789ab", True), ("Mueller_Hans", False),
     ("20190304", False), ("ms_2019-03-04", False)],
)  # fmt: skip
def test_subjects_are_codes_or_pseudonyms(built, subject, passes):
  nothing = contents.Contents({}, {})
  check = checks.of_privacy(dataset_with(built, subject), nothing)
  assert check.passed == passes
  assert passes or subject in " ".join(check.problems)


def test_free_text_in_records_is_found(built):
  check = checks.of_privacy(
      built_dataset.open_folder(built), contents.Contents({}, {"note": "Seen by Dr. Haus"})
  )
  assert check.problems == ("records, note: free text: 'Seen by Dr. Haus'",)
  assert contents._free_text({"site": "A12", "note": "seen twice", "day": "2019-03-04"}) == {
      "note": "seen twice", "day": "2019-03-04"
  }


def test_names_of_the_raw_folder_are_looked_for(built, tmp_path):
  (tmp_path / "Doe_Jane.nii").write_bytes(b"")
  opened = built_dataset.open_folder(built)
  nothing = contents.Contents({}, {})
  assert checks.of_privacy(opened, nothing, None, tmp_path).passed
  with pytest.raises(InputError, match="no such folder"):
    checks.of_privacy(opened, nothing, None, tmp_path / "none")


@pytest.mark.parametrize("text", ["2019-03-04", "20190304", "04.03.2019", "x_2019_03_04_y"])
def test_dates_are_known(text):
  assert subject_names.has_date(text)
  assert not subject_names.has_date("201903041") and not subject_names.has_date("ms_001")


def test_slices_that_a_build_left_out_do_not_shift_the_others():
  images = [np.full((2, 2), value, np.uint8) for value in (1, 2, 3)]
  filled = contents._without_gaps(images, [4, 6, 7])
  assert [int(image[0, 0]) for image in filled] == [1, 1, 2, 3]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("form", ["slices", "volumes"])
def test_scans_of_every_form_and_container_are_looked_at(tmp_path, form, file_format, monkeypatch):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  builder = build_samples.build(
      "hippocampus_t1w", raw, tmp_path / "data", options={"form": form}, file_format=file_format
  )
  seen = []
  monkeypatch.setattr(faces, "judge", lambda *scan: seen.append(scan) or faces.SKULL_STRIPPED)
  found = contents.gather(built_dataset.open_folder(pathlib.Path(builder.data_path)))
  rows = build_samples.rows_of(builder)
  assert sorted(found.faces[faces.SKULL_STRIPPED]) == sorted({row["volume"] for row in rows})
  # Voxels of two matrices, (24, 12, 20) and (32, 12, 27), cut coronally.
  assert {scan[0].shape for scan in seen} == {(12, 20, 24), (12, 27, 32)}
  assert {scan[1] for scan in seen} == {"ILA"}
  assert all(np.isfinite(scan[2]).all() for scan in seen)


def test_a_statement_stands_for_what_images_do_not_show():
  unsure = contents.Contents({faces.UNKNOWN: ["a"], faces.SKULL_STRIPPED: ["b"]}, {})
  assert not checks.of_faces(unsure).passed
  assert checks.of_faces(unsure, "Defaced by pydeface.").said.endswith("Defaced by pydeface.")
  assert checks.of_faces(contents.Contents({faces.REMOVED: ["a"]}, {})).passed


def test_a_copy_that_differs_leaves_nothing(built, tmp_path, monkeypatch):
  opened = built_dataset.open_folder(built)
  report = json.loads(json.dumps(opened.report))
  report["shards"][0]["sha256"] = "0" * 64
  changed = built_dataset.BuiltDataset(built, report, opened.rows)
  decision = licences.decide(["CC0"])
  with pytest.raises(InputError, match="changed while it was copied"):
    folder.write(changed, tmp_path / "a" / "b" / "1.0.0", {}, decision, [])
  assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_help_loads_neither_tensorflow_nor_mlcroissant():
  code = (
      "import sys\nfrom flexunet.tools.publish import __main__\n"
      "assert not {'tensorflow', 'mlcroissant'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
