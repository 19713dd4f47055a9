"""Films and images of slices beside a label: whole, replaced in one step, kept where asked to."""

import importlib.util
import io

import nibabel as nib
import numpy as np
import pytest
import run_samples
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.prediction import files, scans, views
from flexunet.prediction.outputs import Outputs
from flexunet.prediction.predictor import Predictor
from flexunet.reporting import animation, sheets

SLICES = 5
RED = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)


@pytest.fixture
def scan(tmp_path):
  """Returns a volume of five slices in which a square is class 2."""
  voxels = np.full((12, 10, SLICES), 20, np.int16)
  voxels[4:8, 3:6, 1:4] = 255
  nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1, 2, 1])), tmp_path / "a.nii.gz")
  return tmp_path / "a.nii.gz"


def predict(path, folder, **asked) -> files.Outcome:
  config = run_samples.run_config()
  predictor = Predictor(run_samples.BrightnessNetwork(), config)
  outputs = Outputs(folder=folder, **{"overlay": False, **asked})
  return files.predict_path(path, predictor, config, outputs, show_progress=False)


def frames_of(path) -> list[np.ndarray]:
  film = Image.open(path)
  frames = []
  for number in range(film.n_frames):
    film.seek(number)
    frames.append(np.asarray(film.convert("RGB")))
  return frames


def test_a_gif_has_a_frame_per_slice_at_the_speed_asked_for(scan, tmp_path):
  assert predict(scan, tmp_path / "out", animation="gif", animation_fps=4).failures == []
  path = tmp_path / "out/a_overlay.gif"
  film = Image.open(path)
  assert film.n_frames == SLICES and film.info["duration"] == 250 and film.info["loop"] == 0
  frames = frames_of(path)
  assert not np.array_equal(frames[0], frames[2])


def test_an_image_per_slice_lies_in_a_folder_of_the_scan(scan, tmp_path):
  predict(scan, tmp_path / "out", overlay_slices=True)
  names = sorted(path.name for path in (tmp_path / "out").iterdir())
  assert names == ["a_label.nii.gz", "a_slices"]
  found = sorted(path.name for path in (tmp_path / "out/a_slices").iterdir())
  assert found == [f"slice_{k:03d}_overlay.png" for k in range(SLICES)]


def test_images_of_slices_are_never_taken_for_scans(scan, tmp_path):
  predict(scan, tmp_path, overlay_slices=True, animation="gif")
  for volumes_first in (True, False):
    found = scans.find(tmp_path, tmp_path, volumes_first=volumes_first)
    assert [one.path for one in found.scans] == [scan]


def test_slices_that_are_there_are_refused_kept_or_replaced(scan, tmp_path):
  out = tmp_path / "out"
  predict(scan, out, overlay_slices=True)
  left = out / "a_slices" / "slice_099_overlay.png"
  left.write_bytes(b"of a longer scan")
  (refused,) = predict(scan, out, overlay_slices=True).failures
  assert "exists already" in refused
  assert predict(scan, out, overlay_slices=True, skip_existing=True).existing == 1
  assert left.exists()
  predict(scan, out, overlay_slices=True, overwrite=True)
  assert not left.exists() and len(list((out / "a_slices").iterdir())) == SLICES


def test_a_label_without_the_film_asked_for_is_named(scan, tmp_path):
  predict(scan, tmp_path / "out")
  outcome = predict(scan, tmp_path / "out", animation="gif", skip_existing=True)
  assert outcome.existing == 1 and "without all else that was asked for" in outcome.warnings[0]


def test_a_failure_leaves_no_half_folder_and_the_older_one(scan, tmp_path, monkeypatch):
  out = tmp_path / "out"
  predict(scan, out, overlay_slices=True)

  def failing(*_, **__):
    yield np.zeros((4, 4, 3), np.uint8)
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(sheets, "slice_images", failing)
  (failure,) = predict(scan, out, overlay_slices=True, overwrite=True).failures
  assert "No space left" in failure
  assert len(list((out / "a_slices").iterdir())) == SLICES
  assert not list(out.glob(".a_slices*"))


def test_what_a_killed_program_left_is_removed(scan, tmp_path):
  (tmp_path / "out/.a_slices.left").mkdir(parents=True)
  predict(scan, tmp_path / "out", overlay_slices=True)
  assert not (tmp_path / "out/.a_slices.left").exists()


def test_only_a_scan_that_states_its_orientation_gets_letters(tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(
      sheets, "volume_sheet",
      lambda pixels, label, view: seen.append(view.sides) or np.zeros((2, 2, 3), np.uint8),
  )  # fmt: skip
  voxels = np.arange(240, dtype=np.int16).reshape(12, 10, 2)
  nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 2, 1])), tmp_path / "a.nii")
  nib.save(nib.Spm2AnalyzeImage(voxels, None), tmp_path / "b.img")
  silent = nib.Nifti1Image(voxels, None)
  silent.header["pixdim"][1:4] = 1
  nib.save(silent, tmp_path / "c.nii")
  predict(tmp_path, tmp_path / "out", overlay=True)
  # The plan turns them to LAS: columns run to L.
  assert seen[0] == ("R", "L") and set(seen[1:]) == {("", "")}


def test_mp4_without_its_extra_is_refused_in_one_line_before_anything_is_read(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"flexunet\[animation\]") as refused:
    Outputs(folder=".", animation="mp4")
  assert "\n" not in str(refused.value)


def test_a_gif_keeps_the_colours_of_all_classes_and_greys():
  palette = np.array([[0, 0, 0], *[[255 - 20 * k, 30 * k, 9 * k] for k in range(8)]], np.uint8)
  frame = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1).repeat(20, axis=0)
  for k, color in enumerate(palette[1:]):
    frame[10:, 12 * k : 12 * k + 12] = color
  film = Image.open(io.BytesIO(animation.encode(iter([frame]), "gif", 10, palette)))
  shown = np.asarray(film.convert("RGB")).astype(int)
  assert np.abs(shown[:10] - frame[:10]).max() <= 4
  assert np.array_equal(shown[10:, :96], frame[10:, :96])


def test_films_hold_one_frame_in_memory():
  made = []

  def frames():
    for number in range(40):
      made.append(number)
      yield np.full((8, 8, 3), 6 * number, np.uint8)

  data = animation.encode(frames(), "gif", 10, RED)
  assert made == list(range(40)) and Image.open(io.BytesIO(data)).n_frames == 40


@pytest.mark.needs_extra("animation")
@pytest.mark.parametrize("shape", [(33, 47), (48, 32)])
def test_an_mp4_holds_all_slices_in_their_order(tmp_path, shape):
  import imageio_ffmpeg

  greys = (10, 90, 170, 250)
  frames = (np.full((*shape, 3), grey, np.uint8) for grey in greys)
  (tmp_path / "film.mp4").write_bytes(animation.encode(frames, "mp4", 5, RED))
  reader = imageio_ffmpeg.read_frames(str(tmp_path / "film.mp4"))
  about = next(reader)
  width, height = about["size"]
  assert (height, width) == tuple(edge + edge % 2 for edge in shape) and about["fps"] == 5
  means = [np.frombuffer(frame, np.uint8).reshape(height, width, 3)[4, 4].mean()
           for frame in reader]  # fmt: skip
  assert means == pytest.approx(greys, abs=4)


@pytest.mark.needs_extra("animation")
def test_an_encoder_that_fails_is_one_line(monkeypatch):
  import imageio_ffmpeg

  monkeypatch.setattr(imageio_ffmpeg._io, "get_ffmpeg_exe", lambda: "/bin/false")
  with pytest.raises(InputError, match="the encoder of the extra"):
    animation.encode((np.zeros((600, 600, 3), np.uint8) for _ in range(20)), "mp4", 5, RED)


@pytest.mark.needs_extra("animation")
def test_a_film_in_mp4_is_written_beside_the_label(scan, tmp_path):
  assert predict(scan, tmp_path / "out", animation="mp4").failures == []
  assert (tmp_path / "out/a_overlay.mp4").read_bytes()[4:8] == b"ftyp"


def test_names_with_brackets_are_matched_alone():
  assert views._escaped("a[1]*") == "a[[]1][*]"
