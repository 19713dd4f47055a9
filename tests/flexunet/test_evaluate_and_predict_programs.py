"""The two programs as a user starts them, with a real, untrained network."""

import json
import re

import dataset_samples
import forked
import nibabel as nib
import numpy as np
import pytest
import run_samples

from flexunet import run_folder

SCHEME = [{"name": name, "color": [9, 9, 200]} for name in dataset_samples.NAMES]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  import keras

  from flexunet.network import model

  keras.utils.set_random_seed(1)
  made = run_folder.RunFolder.create(tmp_path_factory.mktemp("runs") / "run")
  made.write_config(
      run_samples.with_facts(
          run_samples.run_config(),
          label_scheme=SCHEME,
          fingerprint=dataset_samples.FINGERPRINT,
      )
  )
  network = model.build_model(
      image_size=(32, 32), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2,
  )  # fmt: skip
  network.save(made.model_keras)
  return made


@pytest.mark.slow
def test_evaluate_writes_figures_cases_and_report(run, tmp_path):
  slices = [dataset_samples.blob_slice(20, 26, seed=k) for k in range(3)]
  records = [
      {"image": image, "label": label, "subject": "A", "volume": "A_scan", "slice_index": k}
      for k, (image, label) in enumerate(slices)
  ]
  dataset_samples.write_dataset(tmp_path, {"train": records[:1], "test": records})
  flags = (f"--run_dir={run.path}", "--split=test", f"--data_dir={tmp_path}")
  done = forked.command("evaluate", *flags, "--json")
  assert done.returncode == 0, done.stderr
  line = json.loads(done.stdout)
  assert line["volumes"] == 1 and 0 <= line["foreground_dice"] <= 1
  metrics = json.loads(run.metrics_json.read_text())
  assert metrics["test"]["foreground_dice"]["mean"] == line["foreground_dice"]
  assert run.cases_csv.is_file() and run.report_html.is_file()
  shown = forked.command("evaluate", *flags).stdout
  assert all(len(line) <= 80 or str(run.path) in line for line in shown.splitlines())
  assert "test: 1 subject, 1 volume" in shown and f"Report  {run.report_html}" in shown
  for name, value in line["dice"].items():
    assert re.search(rf"^{name} +{value:.3f} ", shown, re.MULTILINE)


@pytest.mark.slow
def test_predict_writes_a_label_on_the_scan_even_larger_than_the_network(run, tmp_path):
  # 40 rows do not fit the padded 32 of the network, which then runs at another size.
  voxels = np.random.default_rng(0).integers(0, 900, (40, 26, 5)).astype(np.int16)
  nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), tmp_path / "scan.nii")
  (tmp_path / "bad.nii").write_bytes(b"no volume")
  flags = (f"--run_dir={run.path}", f"--input={tmp_path}", f"--output_dir={tmp_path / 'out'}")
  done = forked.command("predict", *flags, "--json")
  assert done.returncode == 1
  assert json.loads(done.stdout) == {
      "predicted": 1, "existing": 0, "failed": 1, "resampled": 0, "labels_skipped": 0,
      "images_skipped": 0, "channels_skipped": 0, "not_read": {}, "not_scans": {},
      "dicom_skipped": {},
  }  # fmt: skip
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert "bad.nii" in line
  label = nib.load(tmp_path / "out" / "scan_label.nii")
  assert label.shape == (40, 26, 5) and label.get_data_dtype() == np.uint8
  assert (tmp_path / "out" / "scan_overlay.png").is_file()
  again = forked.command("predict", *flags, "--overwrite").stdout
  rest = forked.command("predict", *flags, "--skip_existing", "--json")
  assert json.loads(rest.stdout)["existing"] == 1 and json.loads(rest.stdout)["predicted"] == 0
  both = forked.command("predict", *flags, "--skip_existing", "--overwrite")
  assert both.returncode == 1 and "Pass one of the two" in both.stderr
  assert "1 scan predicted, 1 failed" in again and f"Labels  {tmp_path / 'out'}" in again


@pytest.mark.slow
def test_both_programs_predict_in_tiles_and_views_and_say_so(run, tmp_path):
  voxels = np.random.default_rng(0).integers(0, 900, (40, 70, 3)).astype(np.int16)
  nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), tmp_path / "scan.nii")
  passes = ("--tile=32,24", "--overlap=8", "--tta=mirror,scales", "--tta_scales=0.9")
  flags = (f"--run_dir={run.path}", f"--input={tmp_path}", f"--output_dir={tmp_path / 'out'}")
  done = forked.command("predict", *flags, *passes)
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stderr.splitlines() if line.startswith("Predicted ")]
  # Upright, rows and columns change places; the scaled view has a size of its own.
  assert "slices of 70x40 pixels in 3 x 2 tiles of 32x24 that overlap by 8 (--tile)" in lines[0]
  assert "slices of 63x36 pixels" in lines[1]
  assert lines[2] == "Predicted each slice 3 times: as it is, mirrored, scale 0.9"
  assert nib.load(tmp_path / "out" / "scan_label.nii").shape == (40, 70, 3)
  images = [dataset_samples.blob_slice(40, 50, seed=k) for k in range(2)]
  records = [{"image": image, "label": label, "subject": "A", "volume": "A_scan",
              "slice_index": k} for k, (image, label) in enumerate(images)]  # fmt: skip
  dataset_samples.write_dataset(tmp_path / "data", {"train": records[:1], "test": records})
  own = (f"--run_dir={run.path}", "--split=test", f"--data_dir={tmp_path / 'data'}")
  done = forked.command("evaluate", *own, *passes, "--json")
  assert done.returncode == 0, done.stderr
  noted = json.loads(run.metrics_json.read_text())["test"]["evaluated"]["passes"]
  assert any("3 x 3 tiles of 32x24" in line or "2 x 3 tiles of 32x24" in line for line in noted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        ("evaluate", ("--run_dir=/nowhere",), "does not exist"),
        ("predict", ("--run_dir=/nowhere", "--input=a", "--output_dir=b"), "does not exist"),
        ("predict", ("--run_dir=/nowhere", "--input=a"), "--output_dir"),
        ("evaluate", ("--run_dirr=/nowhere",), "run_dir"),
        ("evaluate", ("--run_dir={run}", "--tile=huge"), "--tile must be auto, none, or one"),
        ("predict", ("--run_dir={run}", "--input=a", "--output_dir=b", "--tta=mirrors"),
         "Did you mean 'mirror'"),
        ("predict", ("--run_dir={run}", "--input=a", "--output_dir=b", "--tta"), "tta"),
    ],
)
def test_bad_flags_end_in_one_line_and_exit_code_one(run, program, flags, message):
  done = forked.command(program, *(flag.format(run=run.path) for flag in flags))
  assert done.returncode == 1
  assert "Traceback" not in done.stderr and message in done.stdout + done.stderr
