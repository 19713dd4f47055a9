"""Writes tiny folders of scans and labels in the common layouts, for tests."""

import json
import pathlib

import nibabel as nib
import numpy as np

SHAPE = (10, 12, 6)
LAS = np.diag([-1.0, 1.0, 3.0, 1.0])


def voxels(seed: int, shape=SHAPE) -> np.ndarray:
  """Returns a scan: noise of 20..220 with a brighter block, int16."""
  generator = np.random.default_rng(seed)
  scan = generator.integers(20, 120, shape).astype(np.int16)
  scan[label_of(seed, shape) > 0] += 100
  return scan


def label_of(seed: int, shape=SHAPE) -> np.ndarray:
  """Returns a label with the ids 1 and 2, uint8."""
  label = np.zeros(shape, np.uint8)
  first = 1 + seed % 3
  label[first : first + 3, 2:6, 1:4] = 1
  label[first : first + 3, 7:10, 2:5] = 2
  return label


def save(array: np.ndarray, path: pathlib.Path, affine=LAS) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(array, affine), path)
  return path


def pairs(root: pathlib.Path, names=("anna", "bert", "carl", "dora")) -> pathlib.Path:
  for seed, name in enumerate(names):
    save(voxels(seed), root / "images" / f"{name}.nii.gz")
    save(label_of(seed), root / "labels" / f"{name}.nii.gz")
  return root


def nnunet(root: pathlib.Path, channels=("T1",), count: int = 4, **about) -> pathlib.Path:
  """nnU-Net raw, with the numbers 1000, 1001, ... in its names as traps."""
  folder = root / "Dataset001_Toy"
  for seed in range(count):
    for channel in range(len(channels)):
      path = folder / "imagesTr" / f"case_{1000 + seed}_{channel:04d}.nii.gz"
      save(voxels(seed) + 7 * channel, path)
    save(label_of(seed), folder / "labelsTr" / f"case_{1000 + seed}.nii.gz")
  text = json.dumps({
      "channel_names": {str(n): name for n, name in enumerate(channels)},
      "labels": {"background": 0, "front": 1, "back": 2},
      "file_ending": ".nii.gz", "numTraining": count, **about,
  })  # fmt: skip
  (folder / "dataset.json").write_text(text)
  return folder


def msd(root: pathlib.Path, modality: str = "MRI", count: int = 4) -> pathlib.Path:
  folder = root / "Task01_Toy"
  for seed in range(count):
    name = f"toy_{seed:04d}.nii.gz"
    save(voxels(seed), folder / "imagesTr" / name)
    save(label_of(seed), folder / "labelsTr" / name)
    (folder / "imagesTr" / f"._{name}").write_bytes(b"\0")
  save(voxels(9), folder / "imagesTs" / "toy_0009.nii.gz")
  text = json.dumps({
      "modality": {"0": modality}, "labels": {"0": "background", "1": "left side", "2": "right"},
      "training": [], "test": [],
  })  # fmt: skip
  (folder / "dataset.json").write_text(text)
  return folder


def bids(root: pathlib.Path, sessions=("ses-1", "ses-2")) -> pathlib.Path:
  (root / "derivatives" / "manual").mkdir(parents=True)
  (root / "dataset_description.json").write_text('{"Name": "toy", "BIDSVersion": "1.9.0"}')
  (root / "derivatives" / "manual" / "desc-toy_dseg.tsv").write_text(
      "index\tname\n1\tfront part\n2\tback\n"
  )
  for seed, subject in enumerate(("sub-01", "sub-02", "sub-03")):
    for session in sessions:
      place = pathlib.Path(subject) / session / "anat"
      stem = f"{subject}_{session}"
      save(voxels(seed), root / place / f"{stem}_T1w.nii.gz")
      label = root / "derivatives" / "manual" / place / f"{stem}_desc-toy_dseg.nii.gz"
      save(label_of(seed), label)
  return root


def stack(folder: pathlib.Path, ending: str = ".nii.gz") -> pathlib.Path:
  """Makes one file of four axes of the channels of each case of a folder of `nnunet`."""
  images = folder / "imagesTr"
  for first in sorted(images.glob("*_0000.nii.gz")):
    name = first.name[: -len("_0000.nii.gz")]
    paths = sorted(images.glob(f"{name}_*.nii.gz"))
    channels = [np.asanyarray(nib.load(path).dataobj) for path in paths]
    save(np.stack(channels, axis=-1), images / f"{name}{ending}")
    for path in paths:
      path.unlink()
  about = json.loads((folder / "dataset.json").read_text())
  about["modality"] = about.pop("channel_names")
  del about["file_ending"]
  (folder / "dataset.json").write_text(json.dumps(about))
  return folder
