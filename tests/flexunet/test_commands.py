"""The command `flexunet`: its list, the help of every program, and what is refused at once."""

import configparser
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import dataset_samples
import pytest
import run_samples

from flexunet import __main__ as commands
from flexunet import run_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Imports the programs and forks itself for each line of [words, stdout, stderr], which then is the
# command; it fails where TensorFlow or Keras would be loaded. A start by itself is mostly imports.
LIGHT = """
import gc, importlib, json, os, signal, sys
class Forbid:
  def find_spec(self, name, path=None, target=None):
    if name in ("tensorflow", "keras"):
      raise RuntimeError(f"{name} was loaded")
sys.meta_path.insert(0, Forbid())
from flexunet import __main__ as commands
for module, *_ in commands.COMMANDS.values():
  importlib.import_module(module)
gc.freeze()
for line in sys.stdin:
  words, *outputs = json.loads(line)
  child = os.fork()
  if not child:
    break
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
  sys.exit()
signal.alarm(120)
for number, path in enumerate([os.devnull, *outputs]):
  os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
commands.main(["flexunet", *words])
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Returns what runs `flexunet WORDS` without TensorFlow and returns how it ended."""
  outputs = [tmp_path_factory.mktemp("outputs") / name for name in ("out", "err")]
  light = subprocess.Popen(
      [sys.executable, "-c", LIGHT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      env={**os.environ, "COLUMNS": "80"},
  )  # fmt: skip

  def run(*words: object) -> subprocess.CompletedProcess:
    light.stdin.write(json.dumps([[*map(str, words)], *map(str, outputs)]) + "\n")
    light.stdin.flush()
    code = int(light.stdout.readline())
    return subprocess.CompletedProcess(words, code, *(path.read_text() for path in outputs))

  with light:
    yield run


def test_the_overview_has_a_line_of_80_columns_for_every_command(capsys):
  commands.main(["flexunet", "--help"])
  lines = capsys.readouterr().out.splitlines()
  assert all(len(line) <= 80 for line in lines)
  listed = [line.split()[0] for line in lines if line.startswith("  ")]
  assert listed == list(commands.COMMANDS)


def test_without_a_command_the_overview_is_printed(capsys):
  commands.main(["flexunet"])
  assert capsys.readouterr().out.strip() == commands.overview()


def test_an_unknown_command_gets_the_nearest_spelling_in_one_line(capsys):
  with pytest.raises(SystemExit) as caught:
    commands.main(["flexunet", "trian"])
  assert caught.value.code == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and "Did you mean 'train'?" in line


def test_the_command_and_its_four_sisters_are_installed():
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg")
  scripts = config["options.entry_points"]["console_scripts"].split("\n")
  places = dict(line.split(" = ") for line in scripts if line)
  assert places == {
      "flexunet": "flexunet.__main__:run",
      "flexunet-build": "flexunet.tools.build:run",
      "flexunet-train": "flexunet.train:run",
      "flexunet-evaluate": "flexunet.evaluate:run",
      "flexunet-predict": "flexunet.predict:run",
  }


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_the_help_of_a_program_names_every_flag_and_loads_no_tensorflow(command, start):
  done = start(command, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  program = importlib.import_module(commands.COMMANDS[command][0])._PROGRAM
  own = [name for names in program.groups.values() for name in names]
  for name in [*own, "flagfile"]:
    assert len(re.findall(rf"^  --(\[no\])?{name}\b", done.stdout, re.MULTILINE)) == 1, name
  assert all(len(line) <= 80 for line in done.stdout.splitlines() if line.startswith("   "))
  # Where a program is said to be called, it is called as the overview says.
  assert f"flexunet {command} " in done.stdout


def test_the_help_of_training_begins_with_what_is_used_most(start):
  text = start("train", "--help").stdout
  first = text.split("Most used:")[1].split("\n\n")[0]
  flags = re.findall(r"^  --(?:\[no\])?(\w+)", first, re.MULTILINE)
  assert flags == ["dataset", "data_dir", "run_dir", "budget", "max_minutes", "epochs", "preset",
                   "resume", "fold", "init_from", "seed"]  # fmt: skip
  headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
  assert headings == ["Most used", "Data", "Network", "Optimizer and schedule", "Loss",
                      "Validation and stopping", "Checkpoints and output", "Devices and precision",
                      "Augmentation", "Features of a dataset built elsewhere", "Several hosts",
                      "General"]  # fmt: skip
  for name in ("published/hippocampus_t1w", "dice_cross_entropy", "tversky", "sensitivity"):
    assert name in text


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """Returns (folder of a built dataset, folder of a run without a network, an empty folder)."""
  root = tmp_path_factory.mktemp("places")
  image, label = dataset_samples.blob_slice(20, 26, seed=1)
  records = [{"image": image, "label": label, "subject": "a", "volume": "a", "slice_index": 0}]
  data = dataset_samples.write_dataset(root / "data", {"train": records, "validation": records})
  run = run_folder.RunFolder.create(root / "run")
  run.write_config(run_samples.run_config())
  (root / "empty").mkdir()
  (root / "file").write_text("")
  return {"data": data, "run": run.path, "empty": root / "empty", "root": root}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Returns (folder of a built dataset with a test split, folder of a run with a network)."""
  root = tmp_path_factory.mktemp("trained")
  image, label = dataset_samples.blob_slice(20, 26, seed=1)
  records = [{"image": image, "label": label, "subject": "a", "volume": "a", "slice_index": 0}]
  data = dataset_samples.write_dataset(root, {"train": records, "test": records})
  run = run_folder.RunFolder.create(root / "run")
  run.write_config(run_samples.run_config())
  run.model_keras.write_bytes(b"")
  return data, run.path


TRAIN = ("train", "--data_dir={data}", "--run_dir={root}/new")
RUN = "--run_dir={run}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--run_dir={root}/new", "--data_dir={root}/none"), "no such folder"),
        (("train", "--run_dir={root}/new", "--data_dir={empty}"), "Pass one as --dataset"),
        (("train", "--run_dir={root}/new", "--data_dir={empty}", "--dataset=x"), "has no 'x'"),
        (("train", "--data_dir={data}"), "--run_dir must be given"),
        (("train", "--data_dir={data}", RUN), "must be new or empty"),
        (("train", "--data_dir={data}", "--run_dir={root}", "--resume"), "must be new or empty"),
        (("train", "--data_dir={data}", "--run_dir={root}/file/run"), "is a file"),
        ((*TRAIN, "--validation_split=valid"), "Did you mean 'validation'"),
        ((*TRAIN, "--fold=7"), "--fold must be a fold of"),
        ((*TRAIN, "--image_size=0"), "image_size must be"),
        ((*TRAIN, "--image_size=a"), "--image_size must be whole numbers"),
        ((*TRAIN, "--loss=dise"), "loss"),
        ((*TRAIN, "--metrics=dise"), "metrics must be one of"),
        ((*TRAIN, "--init_from={root}/none"), "--init_from"),
        ((*TRAIN, "--batch_siz=3"), "batch_size"),
        (("cross_validate", "--run_dir={root}/new", "--data_dir={root}/none"), "no such folder"),
        (("cross_validate", "--run_dir={root}/new", "--data_dir={data}"), "needs subjects of two"),
        (("cross_validate", "--data_dir={data}", RUN), "must be new or empty"),
        (("cross_validate", "--data_dir={data}", "--run_dir={root}/new", "--fold=1"), "folds"),
        (("evaluate", "--run_dir={root}/none"), "does not exist"),
        (("evaluate", "--run_dir={empty}"), "has no config.json"),
        (("evaluate", "--run_dir={root}/none,{root}/no"), "does not exist"),
        (("predict", RUN + ",{root}/none", "--input={root}", "--output_dir={root}/out"),
         "does not exist"),
        (("evaluate", RUN), "model.keras must hold the trained network"),
        (("predict", RUN, "--input={root}", "--output_dir={root}/out"), "model.keras must hold"),
        (("export", RUN, "--output_dir={root}/out"), "model.keras must hold"),
        (("export", RUN, "--output_dir={root}/out", "--formats=onx"), "Did you mean 'onnx'"),
        (("inspect", "--run_dir={root}/none"), "does not exist"),
        (("inspect", "--base_kernels=4"), "base_kernels must be odd"),
        (("preview_augmentation", "--data_dir={root}/none", "--output=a.png"), "no such folder"),
        (("preview_augmentation", "--data_dir={data}", "--output=a.txt"), "must be a .png file"),
        (("benchmark_input", "--data_dir={root}/none"), "no such folder"),
        (("benchmark_readers", "--data_dir={root}/none"), "no such folder"),
        (("benchmark_trainer", "--data_dir={root}/none"), "no such folder"),
        (("benchmark_quality", "--sets=a={root}/none:x", "--output_dir={root}/new"),
         "no such folder"),
        (("benchmark_predict", "--run_dir={root}/none", "--input={root}"), "does not exist"),
        (("benchmark_predict", RUN, "--input={root}"), "model.keras must hold"),
        (("convert_config", "{root}/none"), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_path_or_a_flag_is_said_before_tensorflow_is_loaded(
    words, message, places, start
):
  done = start(*(word.format(**places) for word in words))
  assert done.returncode == 1 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and message in line
  assert not (places["root"] / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "--split=tset"), "Did you mean 'test'"),
        (("evaluate", "--surface_tolerance_mm=1,0"), "must be above 0"),
        (("evaluate", "--stress=nosie"), "Did you mean 'noise'"),
        (("evaluate", "--stress=quick,full"), "not both"),
        (("evaluate", "--weights=2,1"), "--weights is for several runs"),
        (("evaluate", "--output_dir={root}/out"), "--output_dir is for several runs"),
        (("predict", "--input={root}/none", "--output_dir={root}/out"), "--input"),
        (
            ("predict", "--weights=equal", "--input={root}", "--output_dir={root}/out"),
            "--weights is for several runs",
        ),
        (("predict", "--input={root}", "--output_dir={root}/file"), "--output_dir"),
    ],
)
def test_what_is_wrong_beside_a_trained_run_is_said_before_tensorflow_is_loaded(
    words, message, places, trained, start
):
  data, run = trained
  given = [word.format(**places) for word in words]
  given += [f"--data_dir={data}"] if words[0] == "evaluate" else []
  done = start(*given, f"--run_dir={run}")
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and message in line
