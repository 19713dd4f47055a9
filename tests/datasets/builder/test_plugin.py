"""Builders that users name: by a folder, a file, or an installed package."""

import pathlib
import re
import shutil
import subprocess
import sys

import build_samples
import forked
import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.builder import build_tool, plugin
from flexunet.tools import build

PAGE = pathlib.Path(plugin.__file__).with_name("README.md")


def page_code() -> str:
  """Returns the builder that the page shows."""
  return re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.fixture
def clean_modules():
  """Forgets what a test imported, so that the next may give another file the same name."""
  path, names, options = list(sys.path), set(sys.modules), set(build._OPTIONS)
  yield
  sys.path[:] = path
  program = build._PROGRAM
  for option in set(build._OPTIONS) - options:
    delattr(program.values, option)
    for table in (build._OPTIONS, program._helps, program._choices, program._unset):
      table.pop(option, None)
    for listed in program.groups.values():
      listed[:] = [one for one in listed if one != option]
  for name in set(sys.modules) - names:
    if name.split(".")[0].startswith("my_"):
      del sys.modules[name]
  # TFDS keeps a list of its own.
  from tensorflow_datasets.core import registered

  for name in [name for name in registered._DATASET_REGISTRY if name.startswith("my_")]:
    del registered._DATASET_REGISTRY[name]


def write_builder(folder, code=None, name="my_dataset"):
  """Writes a folder with a builder; by default that of the page."""
  (folder / name).mkdir(parents=True)
  file = folder / name / f"{name}_dataset_builder.py"
  file.write_text(page_code() if code is None else code)
  return folder / name


def write_raw(folder, subjects=5, shape=(12, 14, 6)):
  """Writes images/*.nii.gz with labels/*.nii.gz: a bright block, labelled; the last has none."""
  for kind in ("images", "labels"):
    (folder / kind).mkdir(parents=True)
  for number in range(subjects):
    generator = np.random.default_rng(number)
    image = generator.integers(0, 50, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[4:8, 5:9, 2:5] = 1
    image[label > 0] += 100
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    nib.save(nib.Nifti1Image(image, affine), folder / "images" / f"s{number}.nii.gz")
    if number < subjects - 1:
      nib.save(nib.Nifti1Image(label, affine), folder / "labels" / f"s{number}.nii.gz")
  return folder


def run(*words):
  """Runs the build tool in this process."""
  argv = ["build", "--num_workers=1", *map(str, words)]
  build.main(build._PROGRAM.parse(build.expand(argv)))


def test_the_builder_of_the_page_has_25_lines_at_most():
  lines = [line for line in page_code().splitlines() if line.strip()]
  assert len(lines) <= 25


def test_the_builder_of_the_page_builds_its_folder(tmp_path, clean_modules, capsys):
  folder, raw = write_builder(tmp_path), write_raw(tmp_path / "raw")
  run(f"--builder={folder}", f"--manual_dir={raw}", "--dry_run")
  assert "5 cases, 4 labelled" in capsys.readouterr().out
  run(f"--builder={folder}", f"--manual_dir={raw}", f"--data_dir={tmp_path / 'data'}")
  assert (tmp_path / "data" / "my_dataset" / "slices" / "1.0.0" / "build_report.json").is_file()
  # The same by its name beside the flag, and from Python.
  run("my_dataset/slices", f"--builder={folder}", f"--manual_dir={raw}",
      f"--data_dir={tmp_path / 'data'}")  # fmt: skip
  assert "Already built" in capsys.readouterr().out
  built = build_tool.build_dataset("my_dataset", raw, tmp_path / "other", builder=folder)
  assert build_samples.digests(built) == build_samples.digests(
      tmp_path / "data" / "my_dataset" / "slices" / "1.0.0"
  )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "package", "file"])
def test_worker_processes_find_the_builder_too(tmp_path, form):
  # Helpers beside it: a package imports them by its own name, a file by theirs.
  folder, raw = write_builder(tmp_path), write_raw(tmp_path / "raw", subjects=9)
  named = file = folder / "my_dataset_dataset_builder.py"
  code = file.read_text().replace("{0: 0, 1: 1}", "my_values.MAP")
  (folder / "my_values.py").write_text("MAP = {0: 0, 1: 1}\n")
  if form == "file":
    file.write_text(f"import my_values\n{code}")
  else:
    named = folder
    if form == "package":
      (folder / "__init__.py").touch()
    file.write_text(f"from my_dataset import my_values\n{code}")
  if form == "folder":  # Without __init__.py the folder itself is searched.
    file.write_text(f"import my_values\n{code}")
  done = subprocess.run(
      [sys.executable, "-m", "flexunet.tools.build", f"--builder={named}", f"--manual_dir={raw}",
       f"--data_dir={tmp_path / 'data'}", "--num_workers=3"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "data" / "my_dataset" / "slices" / "1.0.0").is_dir()


def test_options_of_a_plugin_become_flags(tmp_path, clean_modules, capsys):
  code = page_code().replace("class Builder", '''
import dataclasses
from flexunet.core.config_fields import knob
from flexunet.datasets.builder.record_options import VolumeOptions

@dataclasses.dataclass(frozen=True, kw_only=True)
class MyOptions(VolumeOptions):
  largest_label: int = knob(1, "Largest label value that is a lesion.", minimum=1)

class MyConfig(volume_builder.VolumeConfig):
  OPTIONS = MyOptions

class Builder''')
  code = code.replace("volume_builder.VolumeConfig(name", "MyConfig(name")
  code = code.replace(
      "{0: 0, 1: 1}", "{0: 0, **{v: 1 for v in range(1, self.options.largest_label + 1)}}"
  )
  folder, raw = write_builder(tmp_path, code), write_raw(tmp_path / "raw")
  run(f"--builder={folder}", f"--manual_dir={raw}", "--dry_run", "--largest_label=2")
  assert "5 cases" in capsys.readouterr().out
  assert "Options of my_dataset" in build._PROGRAM.help()
  with pytest.raises(InputError, match="--largest_label=0"):
    run(f"--builder={folder}", f"--manual_dir={raw}", "--dry_run", "--largest_label=0")
  with pytest.raises(InputError, match="--largest_label is an option of another builder"):
    run("ms_lesion_mri", f"--manual_dir={raw}", "--dry_run", "--largest_label=2")


BAD = {
    "no class Builder; its classes: Scans": "class Scans:\n  pass\n",
    "has no class Builder": "x = 1\n",
    "has a Builder that is none": "class Builder:\n  pass\n",
    r"_builder\.py:2: the import fails: ModuleNotFoundError: No module named 'my_missing'":
        "\nimport my_missing\n",
    r"_builder\.py:1: the import fails: SyntaxError": "def oops(:\n",
    r"_builder\.py:3: the import fails: ZeroDivisionError": "def one():\n  pass\n1 / 0\n",
    r"Builder lacks BUILDER_CONFIGS, such as \[VolumeConfig": page_code().replace(
        "  BUILDER_CONFIGS", "  CONFIGS"
    ),
    r"lacks VERSION, such as tfds.core.Version": page_code().replace("  VERSION", "  RELEASE"),
    r"lacks find_cases\(\)": page_code().replace("def find_cases", "def find"),
    r"lacks label_map\(\)": page_code().replace("def label_map", "def labels"),
    "configs of a VolumeBuilder must be `VolumeConfig`s": page_code().replace(
        "volume_builder.VolumeConfig(",
        "__import__('flexunet.datasets.builder.segmentation_builder', fromlist=['x'])"
        ".RecordConfig(",
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_with_a_builder_is_one_line(tmp_path, clean_modules, message):
  folder = write_builder(tmp_path, BAD[message])
  with pytest.raises(InputError, match=message) as caught:
    catalog.plugin_class(folder)
  assert "\n" not in str(caught.value)
  assert str(folder) in str(caught.value)


def test_a_path_that_is_no_builder_is_refused(tmp_path, clean_modules):
  with pytest.raises(InputError, match="there is no such file or folder"):
    catalog.plugin_class(tmp_path / "none")
  (tmp_path / "notes.txt").touch()
  with pytest.raises(InputError, match=r"must be a \.py file"):
    catalog.plugin_class(tmp_path / "notes.txt")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match=r"must hold empty_dataset_builder\.py .* holds no \.py"):
    catalog.plugin_class(tmp_path / "empty")


def test_names_that_clash_are_refused(tmp_path, clean_modules):
  code = page_code().replace("  VERSION", '  name = "ms_lesion_mri"\n  VERSION')
  with pytest.raises(InputError, match="is called ms_lesion_mri, as one of FlexUNet is"):
    catalog.plugin_class(write_builder(tmp_path, code, name="my_lesions"))
  folder = write_builder(tmp_path)
  with pytest.raises(InputError, match=r"builds the dataset my_dataset\. Got: my_data\."):
    catalog.plugin_class(folder, "my_data")
  # A file whose name is that of a module of Python.
  shutil.copy(folder / "my_dataset_dataset_builder.py", tmp_path / "json.py")
  with pytest.raises(InputError, match="another module has the name 'json' already"):
    catalog.plugin_class(tmp_path / "json.py")


def test_a_single_file_of_any_name_is_a_dataset(tmp_path, clean_modules):
  file = tmp_path / "my_scans.py"
  file.write_text(page_code())
  assert catalog.plugin_class(file).name == "my_scans"


@pytest.fixture
def offered(tmp_path, clean_modules, monkeypatch):
  """Returns what installs a package that offers a dataset of a name."""

  def install(name="my_dataset", value="my_package.my_dataset_dataset_builder", code=None):
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    code = page_code() if code is None else code
    (package / "my_dataset_dataset_builder.py").write_text(code)
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flexunet.datasets]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")

  return install


def test_a_package_offers_a_dataset_by_name(offered, tmp_path, capsys):
  offered()
  assert "my_dataset" in catalog.known_names()
  assert "my_package" not in sys.modules  # Listing it has run nothing of it.
  raw = write_raw(tmp_path / "raw")
  run("my_dataset", f"--manual_dir={raw}", f"--data_dir={tmp_path / 'data'}")
  assert (tmp_path / "data" / "my_dataset" / "slices").is_dir()
  with pytest.raises(SystemExit):
    run("--help")
  printed = " ".join(capsys.readouterr().out.split())
  assert re.search(r"Datasets: brain_ich_ct, .*ms_lesion_mri, .*my_dataset\.", printed)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "other"}, "the name must be that of its builder, my_dataset"),
        ({"value": "my_package.none"}, "its import fails: ModuleNotFoundError"),
        ({"value": "my_package.my_dataset_dataset_builder:tfds"}, "must define `class Builder"),
    ],
)
def test_a_package_whose_offer_is_wrong_is_named(offered, given, message):
  offered(**given)
  with pytest.raises(InputError, match=message):
    catalog.builder_class(given.get("name", "my_dataset"))


def test_without_a_dataset_all_known_ones_are_listed():
  with pytest.raises(InputError, match=r"Known: .*ms_lesion_mri.*named by --builder"):
    run()


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(tmp_path):
  write_builder(tmp_path)
  write_raw(tmp_path / "RAW", subjects=9, shape=(24, 28, 8))
  # What follows is about machines that are not here.
  text = PAGE.read_text(encoding="utf-8").partition("\n# Builds on Apache Beam")[0]
  lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("flexunet ")]
  assert [words[1] for words in lines] == [
      "build", "build", "verify", "train", "evaluate", "predict"]  # fmt: skip
  for words in lines:
    words = ["--epochs=2" if word == "--max_minutes=10" else word for word in words]
    done = forked.command(*words[1:], cwd=tmp_path)
    assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
  label = nib.load(tmp_path / "OUT" / "s0_label.nii.gz")
  assert label.shape == (24, 28, 8)
  np.testing.assert_array_equal(label.affine, np.diag([1.5, 1.5, 3.0, 1.0]))
