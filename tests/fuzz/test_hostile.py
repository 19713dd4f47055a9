"""Hostile inputs to prediction and evaluation, and a sample of all through the real programs."""

import dataclasses
import functools
import json
import pathlib
import shutil

import forked
import fuzz_hostile
import fuzz_inputs
import fuzz_judge
import nibabel as nib
import numpy as np
import pytest
import run_samples
from fuzz_judge import Seen
from PIL import Image

from flexunet import run_folder
from flexunet.evaluation import evaluate
from flexunet.prediction import files as prediction_files
from flexunet.prediction.predictor import Predictor

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return fuzz_inputs.write_run(tmp_path_factory.mktemp("trained"))


def predicted(folder: pathlib.Path, out: pathlib.Path, run_config) -> Seen:
  """Predicts a folder with a good and a bad file; the good one must not be lost."""
  predictor = Predictor(run_samples.BrightnessNetwork(), run_config)
  outcome = prediction_files.predict_path(
      folder, predictor, run_config, prediction_files.Outputs(folder=out), show_progress=False
  )
  assert list(out.glob("good_label*")), f"the good file was lost: {outcome.failures}"
  assert all("\n" not in line for line in outcome.failures), outcome.failures
  assert not list(out.glob("bad_label*")), "a label was written all the same"
  return Seen(outcome.predicted, outcome.failures)


@pytest.mark.parametrize("of_images", [False, True], ids=["volumes", "images"])
def test_predict(tmp_path, of_images):
  # The network stands in for one of any size: slices must fit it as they are.
  run_config = run_samples.run_config(image_size=(64, 64))
  facts = {"slice_plan": None, "intensity": None} if of_images else {}
  run_config = run_samples.with_facts(run_config, spacing_mm=None, **facts)
  category = fuzz_judge.category(f"predict, {'images' if of_images else 'volumes'}")
  hostile = fuzz_hostile.REFUSED_IMAGES if of_images else fuzz_hostile.REFUSED
  for number, (what, write) in enumerate(hostile.items()):
    folder = tmp_path / str(number)
    folder.mkdir()
    bad = write(folder)
    if of_images:
      image = np.arange(30 * 20, dtype=np.uint8).reshape(30, 20)
      Image.fromarray(image).save(folder / "good.png")
    else:
      nib.save(nib.Nifti1Image(fuzz_inputs.voxels(), np.eye(4)), folder / "good.nii")
    category.judge(
        what,
        functools.partial(predicted, folder, tmp_path / f"out{number}", run_config),
        lambda result: False,
        [bad.name],
    )
  category.check()


def _edit_json(name, change):
  def edit(run, dataset):
    path = (run if (run / name).is_file() else dataset) / name
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return name

  return edit


def _bytes(where, pattern, change):
  def edit(run, dataset):
    path = sorted((run if where == "run" else dataset).glob(pattern))[0]
    path.write_bytes(change(path.read_bytes()))
    return path.name

  return edit


def _gone(where, pattern):
  def edit(run, dataset):
    path = sorted((run if where == "run" else dataset).glob(pattern))[0]
    path.unlink()
    return path.name

  return edit


def _middle_flipped(data: bytes) -> bytes:
  changed = bytearray(data)
  changed[len(data) // 2] ^= 16
  return bytes(changed)


def _set(values, *path):
  *parents, key, value = path
  for name in parents:
    values = values[name]
  values[key] = value


def _other_network(run, dataset):
  from flexunet.network import model

  shape = dataclasses.replace(run_folder.RunFolder(run).read_config().model, base_filters=3)
  model.build_model(shape).save(run / "model.keras")
  return "model.keras"


_TEST_SHARD = "*-test.tfrecord-00000*"
# {what: what changes the run or its dataset and returns the name that an error must hold}.
HOSTILE_RUNS = {
    "model flipped": _bytes("run", "model.keras", _middle_flipped),
    "model truncated": _bytes("run", "model.keras", lambda data: data[: len(data) // 2]),
    "model empty": _bytes("run", "model.keras", lambda data: b""),
    "model gone": _gone("run", "model.keras"),
    "model of another shape": _other_network,
    "config gone": _gone("run", "config.json"),
    "config empty": _bytes("run", "config.json", lambda data: b""),
    "config nested": _bytes("run", "config.json", lambda data: b"[" * 99_999),
    "config no UTF-8": _bytes("run", "config.json", lambda data: b"\xff" + data),
    "config a list": _bytes("run", "config.json", lambda data: b"[]"),
    "fewer classes": _edit_json("config.json", lambda v: _set(v, "model", "num_classes", 2)),
    "another size": _edit_json("config.json", lambda v: _set(v, "model", "image_size", [8, 8])),
    "no size": _edit_json("config.json", lambda v: _set(v, "model", "image_size", None)),
    "another split": _edit_json("config.json", lambda v: _set(v, "data", "train_split", "test")),
    "another window": _edit_json(
        "config.json", lambda v: _set(v, "dataset_facts", "intensity", "high", 50.0)
    ),
    "another plane": _edit_json(
        "config.json", lambda v: _set(v, "dataset_facts", "slice_plan", "plane", "coronal")
    ),
    "manifest nested": _bytes("run", "manifest.json", lambda data: b"[" * 99_999),
    "manifest a list": _bytes("run", "manifest.json", lambda data: b"[]"),
    "test shard gone": _gone("dataset", _TEST_SHARD),
    "test shard truncated": _bytes("dataset", _TEST_SHARD, lambda data: data[:-9]),
    "test shard flipped": _bytes("dataset", _TEST_SHARD, _middle_flipped),
    "test shard empty": _bytes("dataset", _TEST_SHARD, lambda data: b""),
    "table empty": _bytes("dataset", "records.csv", lambda data: b""),
    "table no UTF-8": _bytes("dataset", "records.csv", lambda data: b"\xff" + data),
    "table truncated": _bytes("dataset", "records.csv", lambda data: data[: len(data) // 2]),
    "report nested": _bytes("dataset", "build_report.json", lambda data: b"[" * 99_999),
    "report of other classes": _edit_json(
        "build_report.json", lambda v: v["label_scheme"].pop()
    ),
    "report of other records": _edit_json(
        "build_report.json", lambda v: _set(v, "fingerprint", "0" * 64)
    ),
    "metadata gone": _gone("dataset", "features.json"),
    "metadata flipped": _bytes("dataset", "features.json", _middle_flipped),
    "metadata nested": _bytes("dataset", "dataset_info.json", lambda data: b"[" * 99_999),
    "metadata empty": _bytes("dataset", "dataset_info.json", lambda data: b""),
}


def test_evaluate(trained, tmp_path):
  category = fuzz_judge.category("evaluate")
  for number, (what, change) in enumerate(HOSTILE_RUNS.items()):
    run, data = tmp_path / f"run{number}", tmp_path / f"data{number}"
    shutil.copytree(trained.path, run)
    shutil.copytree(trained.data_dir, data)
    dataset = data / trained.dataset.relative_to(trained.data_dir)
    name = change(run, dataset)

    def read(run=run, data=data):
      opened = run_folder.RunFolder.open(run)
      scores = evaluate.evaluate(opened, ["test"], data_dir=data, show_progress=False)
      return Seen(scores["test"]["foreground_dice"])

    names = [name, str(dataset), dataset.parts[-3]]
    category.judge(what, read, lambda result: False, names)
    shutil.rmtree(run)
    shutil.rmtree(data)
  category.check()


def programs(trained, tmp_path) -> dict[str, list[str]]:
  """Returns {what: command line}, each on one damaged input."""
  raw = tmp_path / "raw"
  shutil.copytree(trained.path.parent / "raw", raw)
  scan = sorted(raw.rglob("T1-Weighted MRI/*.nii"))[0]
  scan.write_bytes(scan.read_bytes()[:500])
  run, data = tmp_path / "run", tmp_path / "data"
  shutil.copytree(trained.path, run)
  shutil.copytree(trained.data_dir, data)
  _bytes("run", "model.keras", _middle_flipped)(run, data)
  shard = sorted(data.rglob(_TEST_SHARD))[0]
  shard.write_bytes(_middle_flipped(shard.read_bytes()))
  nested = tmp_path / "nested"
  shutil.copytree(trained.path, nested)
  (nested / "config.json").write_text("[" * 99_999)
  dataset = data / trained.dataset.relative_to(trained.data_dir)
  return {
      "build": ["build", "full_head_t1w", f"--manual_dir={raw}", f"--data_dir={tmp_path / 'new'}"],
      "verify": ["verify", str(dataset)],
      "predict a bad scan": ["predict", f"--run_dir={trained.path}", f"--input={scan}",
                             f"--output_dir={tmp_path / 'out'}"],
      "predict with a bad model": ["predict", f"--run_dir={run}", f"--input={scan}",
                                   f"--output_dir={tmp_path / 'out'}"],
      "evaluate": ["evaluate", f"--run_dir={trained.path}", f"--data_dir={data}"],
      "evaluate a bad run": ["evaluate", f"--run_dir={nested}"],
      "export": ["export", f"--run_dir={run}", f"--output_dir={tmp_path / 'export'}"],
      "inspect": ["inspect", f"--model={run / 'model.keras'}"],
      "preview on a bad shard": [
          "preview_augmentation", "--dataset=full_head_t1w", f"--data_dir={data}", "--split=test",
          f"--output={tmp_path / 'sheet.png'}",
      ],
      "train from a bad network": [
          "train", "--dataset=full_head_t1w", f"--data_dir={trained.data_dir}", "--epochs=1",
          f"--run_dir={tmp_path / 'another'}", f"--init_from={run / 'model.keras'}",
      ],
      "train on a bad shard": [
          "train", "--dataset=full_head_t1w", f"--data_dir={data}", "--epochs=1",
          "--train_split=test", "--validation_split=train", f"--run_dir={tmp_path / 'other'}",
      ],
  }  # fmt: skip


def test_programs_end_in_one_line_and_exit_code_one(trained, tmp_path):
  category = fuzz_judge.category("programs")
  for what, command in programs(trained, tmp_path).items():
    done = forked.command(*command)
    text = done.stderr
    fine = done.returncode == 1 and "Traceback" not in text and "Error:" not in text
    verdict = fuzz_judge.CAUGHT if fine else fuzz_judge.TRACEBACK
    category.counts[verdict] += 1
    if not fine:
      category.details.append((verdict, what, f"exit {done.returncode}: {text[-400:]}"))
  category.check()
