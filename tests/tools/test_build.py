"""The build tool: what it prints, what it refuses, and that it leaves nothing half-written."""

import errno
import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets.builder import build_run
from flexunet.tools import build
from flexunet.tools.phantom import layouts

HIPPOCAMPUS, ICH = "hippocampus_t1w", "brain_ich_ct"
SIZES = {HIPPOCAMPUS: (24, 12, 20), ICH: (40, 4)}


def run(*arguments):
  """Runs the tool in this process; bad input comes as `InputError`."""
  build.main(build._PROGRAM.parse(["build", "--num_workers=1", *map(str, arguments)]))


def raw_folder(dataset, folder, subjects=3):
  return layouts.write(dataset, folder, subjects=subjects, seed=0, size=SIZES[dataset])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
  """{dataset: raw folder}, copied by each test that spoils one."""
  root = tmp_path_factory.mktemp("raw")
  return {dataset: raw_folder(dataset, root / dataset) for dataset in SIZES}


def test_a_build_ends_with_a_table_and_says_where_it_lies(pristine, tmp_path, capsys):
  run(HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path}")
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines[:5]] == [
      "split", "train", "validation", "test", "unlabeled"]
  assert lines[1].split()[1:4] == ["1", "1", "12"]
  assert str(tmp_path / HIPPOCAMPUS / "slices" / "1.0.0") in lines[-1]
  assert sorted(path.name for path in tmp_path.iterdir()) == [HIPPOCAMPUS]


def test_what_is_built_already_is_left_alone_unless_told(pristine, tmp_path, capsys):
  command = [HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path}"]
  run(*command)
  info = next(tmp_path.rglob("dataset_info.json"))
  before = info.stat().st_mtime_ns
  capsys.readouterr()
  run(*command)
  assert "Already built" in capsys.readouterr().out and info.stat().st_mtime_ns == before
  run(*command, "--overwrite")
  assert "Already built" not in capsys.readouterr().out and info.stat().st_mtime_ns != before


def places_in(folder):
  path = folder / HIPPOCAMPUS / "slices" / "1.0.0" / "splits.json"
  listed = json.loads(path.read_text())["subjects"]
  return {name: (entry["split"], entry["fold"]) for name, entry in listed.items()}


def test_a_dataset_grows_in_its_place_and_nobody_moves(tmp_path, capsys):
  raw = raw_folder(HIPPOCAMPUS, tmp_path / "raw", subjects=6)
  later = [path for path in raw.rglob("HFH_00[25]*") if "Test" not in path.parts]
  for path in later:
    path.rename(tmp_path / path.name)
  command = [HIPPOCAMPUS, f"--manual_dir={raw}", f"--data_dir={tmp_path / 'data'}"]
  run(*command)
  last = capsys.readouterr().out.splitlines()[-1]
  assert last.startswith("To add subjects later without moving anyone: --overwrite --splits_file=")
  before = places_in(tmp_path / "data")
  assert len(before) == 4
  for path in later:
    (tmp_path / path.name).rename(path)
  # The file lies in the very folder that the build replaces.
  run(*command, *last.split()[-2:])
  after = places_in(tmp_path / "data")
  assert len(after) == 6 and {name: after[name] for name in before} == before
  assert "subjects placed by shares 2, splits_file 4" in capsys.readouterr().out
  report = next((tmp_path / "data").rglob("build_report.json")).read_text()
  assert str(tmp_path) not in report


def test_other_splits_of_what_is_built_already_are_asked_for_aloud(pristine, tmp_path, capsys):
  command = [HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path}"]
  run(*command, "--split_seed=3")
  run(*command, "--split_seed=3")
  run(*command)
  assert capsys.readouterr().out.count("Already built") == 2
  with pytest.raises(InputError, match="is built already, with other splits. --overwrite"):
    run(*command, "--split_seed=4")
  run(*command, "--split_seed=4", "--config_name=other")
  assert {"other", "slices"} <= {path.name for path in (tmp_path / HIPPOCAMPUS).iterdir()}


def test_a_dry_run_shows_who_falls_where(pristine, tmp_path, capsys):
  names = tmp_path / "names.txt"
  names.write_text("hfh_002\nhfh_003\n")
  run(HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", "--dry_run", f"--holdout={names}")
  assert ("subjects: train 1, validation 0, test 2; folds of 1, 0, 0, 0, 0 placed by holdout 2,"
          " shares 1.") in capsys.readouterr().out  # fmt: skip


def test_a_dry_run_prints_every_file_and_builds_nothing(pristine, tmp_path, capsys):
  run(HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path / 'out'}",
      "--dry_run")
  printed = capsys.readouterr().out
  headers = [p.name for p in pristine[HIPPOCAMPUS].rglob("*.hdr")]
  assert len(headers) == 7 and all(name in printed for name in headers)
  assert "24 x 12 x 20" in printed and "unstated" in printed and "0 1 2" in printed
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["", "Train"])
def test_a_raw_folder_that_may_not_be_read_is_not_blamed_on_the_output(
    pristine, tmp_path, monkeypatch, inside
):
  raw, iterdir = pristine[HIPPOCAMPUS], pathlib.Path.iterdir

  def refuse(folder):
    if folder == raw / inside:
      raise PermissionError(errno.EACCES, "Permission denied", str(folder))
    return iterdir(folder)

  monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
  with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)") as caught:
    run(HIPPOCAMPUS, f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}")
  assert str(raw / inside) in str(caught.value) and "--data_dir" not in str(caught.value)


def test_options_make_a_config_of_their_own(pristine, tmp_path, capsys):
  run(HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path}",
      "--empty_slices=drop", "--plane=axial")
  report = json.loads(next(tmp_path.rglob("build_report.json")).read_text())
  assert report["config"] == "slices-empty_slices_drop-plane_axial"
  assert report["slice_plan"]["plane"] == "axial"
  counts = report["splits"]
  assert counts["train"]["num_records"] == counts["train"]["num_foreground_records"] > 0
  for split in ("validation", "test"):  # Whole volumes, for the scores.
    assert counts[split]["num_records"] > counts[split]["num_foreground_records"] > 0


def first(folder, pattern):
  return sorted(folder.rglob(pattern))[0]


def cut(path, count):
  path.write_bytes(path.read_bytes()[:-count])


def relabel(raw, change):
  path = first(raw, "*_Hipp_Labels.hdr")
  image = nib.load(path)
  nib.AnalyzeImage(change(np.array(image.dataobj)), None).to_filename(path)


def compress_with_wrong_crc(raw):
  """Replaces a label pair by a .nii.gz whose checksum is wrong."""
  path = first(raw, "*_Hipp_Labels.hdr")
  voxels = np.array(nib.load(path).dataobj)
  content = bytearray(gzip.compress(nib.Nifti1Image(voxels, np.eye(4)).to_bytes()))
  content[-6] ^= 1
  path.with_suffix(".nii.gz").write_bytes(content)
  path.unlink()
  path.with_suffix(".img").unlink()


def duplicate_subject(raw):
  for path in sorted((raw / "Train").glob("HFH_*")):
    number = path.stem.split("_")[1]
    shutil.copy(path, raw / "Test" / f"HFH_{number}{path.suffix}")


def link_folder_out(raw):
  outside = (raw / "Train" / "Labels").rename(raw.parent / "Labels")
  (raw / "Train" / "Labels").symlink_to(outside)


def link_out(raw):
  path = first(raw / "Train", "HFH_*.img")
  outside = raw.parent / "outside.img"
  path.rename(outside)
  path.symlink_to(outside)


def declare_8_gb(raw):
  path = first(raw / "Train", "HFH_*.hdr")
  content = bytearray(path.read_bytes())
  content[40:50] = np.array([4, 2000, 2000, 1000, 1], "<i2").tobytes()
  path.write_bytes(content)


def save_picture(raw, pixels):
  Image.fromarray(pixels).save(first(raw, "brain/1.jpg").with_suffix(".png"), "PNG")
  first(raw, "brain/1.png").rename(first(raw, "brain/1.jpg"))


def empty(raw):
  shutil.rmtree(raw)
  raw.mkdir()


def save_mask_of_another_size(raw):
  Image.fromarray(np.zeros((7, 5), np.uint8)).save(first(raw, "*_HGE_Seg.jpg"))


@pytest.mark.parametrize(
    ("dataset", "spoil", "message"), [
        (HIPPOCAMPUS, shutil.rmtree, "no such folder"),
        (HIPPOCAMPUS, empty, "folder is empty"),
        (HIPPOCAMPUS, lambda raw: relabel(raw, lambda v: v[:-1]), "on the grid of its scan"),
        (HIPPOCAMPUS, lambda raw: relabel(raw, lambda v: v * 3), r"must be among \[0, 1, 2\]"),
        (HIPPOCAMPUS, lambda raw: cut(first(raw / "Train", "HFH_*.img"), 10), "truncated"),
        (HIPPOCAMPUS, lambda raw: first(raw / "Train", "HFH_*.img").unlink(), "twin"),
        (HIPPOCAMPUS, lambda raw: first(raw / "Train", "HFH_*.hdr").write_bytes(b"x"), "header"),
        (HIPPOCAMPUS, compress_with_wrong_crc, "CRC"),
        (HIPPOCAMPUS, duplicate_subject, "duplicate"),
        (HIPPOCAMPUS, link_out, "leads out of the folder"),
        (HIPPOCAMPUS, link_folder_out, "leads out of the folder"),
        (HIPPOCAMPUS, declare_8_gb, "declares 8000000000 bytes"),
        (ICH, lambda raw: cut(first(raw, "brain/1.jpg"), 100), "damaged"),
        (ICH, lambda raw: first(raw, "brain/1.jpg").write_bytes(b"no picture"), "damaged"),
        (ICH, save_mask_of_another_size, "size of its image"),
        (ICH, lambda raw: save_picture(raw, np.zeros((9, 9), np.uint16)), "8-bit"),
        (ICH, lambda raw: save_picture(raw, np.zeros((9, 9, 4), np.uint8)), "8-bit"),
        (ICH, lambda raw: save_picture(raw, np.zeros((9000, 9000), np.uint8)), "pixels"),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_written(
    pristine, tmp_path, dataset, spoil, message
):
  raw = shutil.copytree(pristine[dataset], tmp_path / "raw")
  spoil(raw)
  with pytest.raises(InputError, match=message):
    run(dataset, f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out' / 'deep'}")
  assert not (tmp_path / "out").exists()


def test_a_folder_of_another_dataset_is_refused(pristine, tmp_path):
  with pytest.raises(InputError, match=r"nothing of this dataset.*Expected layout: Train"):
    run(HIPPOCAMPUS, f"--manual_dir={pristine[ICH]}", f"--data_dir={tmp_path / 'out'}")
  with pytest.raises(InputError, match=r"looks like brain_ich_ct\.$"):
    run(HIPPOCAMPUS, f"--manual_dir={pristine[ICH]}", f"--data_dir={tmp_path / 'out'}")
  with pytest.raises(InputError, match=r"looks like hippocampus_t1w\.$"):
    run(ICH, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path / 'out'}", "--dry_run")
  assert not (tmp_path / "out").exists()


def test_files_named_in_another_case_are_found(pristine, tmp_path):
  raw = shutil.copytree(pristine[HIPPOCAMPUS], tmp_path / "raw")
  for path in sorted(raw.rglob("*"), key=lambda path: -len(path.parts)):
    path.rename(path.with_name(path.name.swapcase()))
  run(HIPPOCAMPUS, f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}")
  report = json.loads(next((tmp_path / "out").rglob("build_report.json")).read_text())
  assert report["splits"]["train"]["num_records"] == 12 and report["left_out"] == []


def test_an_overwrite_of_bad_input_keeps_what_was_built(pristine, tmp_path):
  raw = shutil.copytree(pristine[HIPPOCAMPUS], tmp_path / "raw")
  command = [HIPPOCAMPUS, f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}"]
  run(*command)
  relabel(raw, lambda voxels: voxels * 3)
  with pytest.raises(InputError, match="must be among"):
    run(*command, "--overwrite")
  assert list((tmp_path / "out").rglob("dataset_info.json"))


@pytest.mark.parametrize(
    ("arguments", "message"), [
        (["hipocampus_t1w"], "Did you mean 'hippocampus_t1w'"),
        ([f"{HIPPOCAMPUS}/left_rigth"], "Did you mean 'left_right'"),
        ([], "Name one dataset"),
        ([HIPPOCAMPUS, "--empty_slices=some"], "empty_slices"),
        ([HIPPOCAMPUS, "--window=5"], "window"),
        ([HIPPOCAMPUS, "--window=a,b"], "window"),
        ([f"{HIPPOCAMPUS}/volumes", "--plane=axial"], "volumes"),
        (["brain_stroke_ct", "--two_classes"], "--two_classes is an option of hippocampus_t1w;"),
        (["image_mask", "--plane=axial"], "brain_ich_ct, full_head_t1w, hippocampus_t1w, ms_les"),
        (["ms_lesion_mri", "--modality=t3"], "t2"),
    ],
)
def test_a_bad_flag_value_is_refused(pristine, tmp_path, arguments, message):
  with pytest.raises(InputError, match=message):
    run(*arguments, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path / 'out'}")
  assert not (tmp_path / "out").exists()


def test_a_data_dir_that_cannot_be_written_is_named(pristine, tmp_path):
  (tmp_path / "file").write_text("x")
  for out in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(InputError, match="--data_dir"):
      run(HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={out}")


def test_options_that_leave_no_slice_are_refused_and_leave_nothing(pristine, tmp_path):
  raw = shutil.copytree(pristine[HIPPOCAMPUS], tmp_path / "raw")
  shutil.rmtree(raw / "Test")
  with pytest.raises(InputError, match="leave no slice to train on"):
    run(HIPPOCAMPUS, f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}",
        "--empty_slices=drop", "--min_foreground_pixels=100000")
  assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on_and_keeps_the_work_done(
    pristine, tmp_path, monkeypatch, capsys
):
  def interrupt(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(build_run, "_assemble", interrupt)
  command = [HIPPOCAMPUS, f"--manual_dir={pristine[HIPPOCAMPUS]}", f"--data_dir={tmp_path}"]
  with pytest.raises(SystemExit) as caught:
    run(*command)
  assert caught.value.code == 130 and "same command continues" in capsys.readouterr().err
  assert len(list(tmp_path.rglob("*.records"))) == 4
  assert not list(tmp_path.rglob("dataset_info.json"))


def test_missing_folders_are_named():
  with pytest.raises(InputError, match=r"--manual_dir is missing.*Kaggle"):
    run(HIPPOCAMPUS, "--data_dir=out")


@pytest.mark.slow
def test_the_program_prints_one_line_and_exits_1(tmp_path):
  result = subprocess.run(
      [sys.executable, "-m", "flexunet.tools.build", "hipocampus_t1w", f"--data_dir={tmp_path}"],
      capture_output=True, text=True, check=False)
  assert result.returncode == 1
  assert result.stderr.startswith("error: Unknown dataset") and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_standard_tfds_commands_give_the_same_files(pristine, tmp_path):
  raw = pristine[HIPPOCAMPUS]
  tfds = pathlib.Path(sys.executable).with_name("tfds")
  checkout = pathlib.Path(__file__).resolve().parents[2]
  common = [f"--manual_dir={raw}"]
  commands = {
      "ours": [sys.executable, "-m", "flexunet.tools.build", HIPPOCAMPUS],
      "by_folder": [tfds, "build", f"datasets/{HIPPOCAMPUS}"],
      "by_name": [tfds, "build", HIPPOCAMPUS, "--imports=flexunet.datasets"],
  }
  found = {}
  for name, command in commands.items():
    out = tmp_path / name
    subprocess.run([*command, *common, f"--data_dir={out}"], cwd=checkout, check=True,
                   capture_output=True)
    version = out / HIPPOCAMPUS / "slices" / "1.0.0"
    found[name] = {
        path.name: path.read_bytes()
        for path in version.iterdir()
        # What TFDS says of itself, and its checksum.
        if path.name not in ("dataset_info.json", "checksums.json")
    }
  assert "build_report.json" in found["ours"] and "records.csv" in found["ours"]
  assert found["ours"] == found["by_folder"] == found["by_name"]
