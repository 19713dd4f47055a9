"""Whole scans of a built dataset as a raw folder of nnU-Net.

  python export_nnunet.py DATASET_FOLDER OUT_FOLDER

DATASET_FOLDER is a version folder of config `volumes`. OUT_FOLDER, named DatasetNNN_NAME, becomes a
dataset for nnUNetv2_plan_and_preprocess: train and validation in imagesTr and labelsTr, test in
imagesTs and labelsTs. splits_final.json holds the dataset's folds: it belongs into
nnUNet_preprocessed/DatasetNNN_NAME. Needs numpy, pillow, nibabel.
"""

import argparse
import json
import pathlib
import sys

import nibabel as nib

from flexunet.records import RecordVolume, open_records

_FOLDERS = {"train": "Tr", "validation": "Tr", "test": "Ts"}


def write(volume: RecordVolume, out: pathlib.Path, part: str) -> None:
  """Writes the channels of a scan and its label.

  Args:
    volume: Of a dataset of config `volumes`.
    out: The folder of the dataset.
    part: "Tr" or "Ts".
  """
  for folder in ("images", "labels"):
    (out / f"{folder}{part}").mkdir(parents=True, exist_ok=True)
  for channel in range(volume.image.shape[-1]):
    image = nib.Nifti1Image(volume.image[..., channel], volume.affine)
    nib.save(image, out / f"images{part}" / f"{volume.volume}_{channel:04d}.nii.gz")
  label = nib.Nifti1Image(volume.label, volume.affine)
  nib.save(label, out / f"labels{part}" / f"{volume.volume}.nii.gz")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("dataset", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  given = parser.parse_args()
  if given.out.exists():
    sys.exit(f"{given.out} exists already. Name a folder that does not.")
  counts = dict.fromkeys(("Tr", "Ts"), 0)
  folds: dict[int, list[str]] = {}
  for split, part in _FOLDERS.items():
    records = open_records(given.dataset, split)
    if not records.holds_volumes:
      sys.exit(f"{given.dataset}: must be of config `volumes`. Build that, and name its folder.")
    for volume, fold in zip(records.volumes(), records.table.fold.tolist(), strict=True):
      write(volume, given.out, part)
      counts[part] += 1
      if part == "Tr":
        folds.setdefault(fold, []).append(volume.volume)
  report = json.loads((given.dataset / "build_report.json").read_text(encoding="utf-8"))
  names = report.get("channel_names", ["MRI"])
  about = {
      "channel_names": {str(number): name for number, name in enumerate(names)},
      "labels": {name: number for number, name in enumerate(records.class_names)},
      "numTraining": counts["Tr"],
      "file_ending": ".nii.gz",
  }
  (given.out / "dataset.json").write_text(json.dumps(about, indent=1))
  # For nnUNet_preprocessed: so that both validate on the same subjects.
  everybody = sorted(name for own in folds.values() for name in own)
  splits = [
      {"train": [name for name in everybody if name not in folds[fold]], "val": sorted(folds[fold])}
      for fold in sorted(folds) if fold >= 0
  ]  # fmt: skip
  (given.out / "splits_final.json").write_text(json.dumps(splits, indent=1))
  print(f"{given.out}: {counts['Tr']} scans to train on, {counts['Ts']} to test on")


if __name__ == "__main__":
  main()
