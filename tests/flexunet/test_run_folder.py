"""The run folder loses nothing and leaves no half files."""

import copy
import json
import zipfile

import pytest
import run_samples

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError


def test_a_folder_with_files_is_refused(tmp_path):
  (tmp_path / "old.txt").write_text("kept")
  with pytest.raises(InputError, match="new or empty"):
    run_folder.RunFolder.create(tmp_path)
  assert (tmp_path / "old.txt").read_text() == "kept"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(InputError, match="must be a folder"):
    run_folder.RunFolder.create(tmp_path / "run")


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_that_is_no_run_is_refused(tmp_path, make):
  folder = tmp_path / "none"
  if make:
    folder.mkdir()
  with pytest.raises(InputError, match="config.json" if make else "does not exist"):
    run_folder.RunFolder.open(folder)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
  target = tmp_path / "values.json"
  files.write_json(target, {"a": 1})
  with pytest.raises(ValueError):
    files.write_json(target, {"a": float("nan")})
  with pytest.raises(TypeError):
    files.write_bytes(target, "text")
  assert json.loads(target.read_text()) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["values.json"]


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
  run = run_folder.RunFolder(tmp_path)
  run.previews.mkdir()
  halves = [tmp_path / ".history.csv.ab12", run.previews / ".epoch_0001.png.x",
            tmp_path / ".model.partial.keras"]  # fmt: skip
  kept = [run.history_csv, tmp_path / ".mine", run.preview_png(0)]
  for path in (*halves, *kept):
    path.write_text("")
  run.remove_partial()
  assert not any(path.exists() for path in halves) and all(path.exists() for path in kept)


MISSING = object()
ODD_EDITS = [
    ("", None), ("", []), ("", 3), ("", "config"), ("model", None), ("model", ["unet"]),
    ("model", "unet"), ("model", MISSING), ("model.num_classes", None), ("model.num_classes", "3"),
    ("model.num_classes", -3), ("model.num_classes", 2), ("model.num_classes", MISSING),
    ("model.image_size", None), ("model.image_size", [0, 32]),
    ("model.image_size", [-32, 32]), ("model.image_size", ["a", "b"]),
    ("model.image_size", 10**30), ("model.base_filters", 10**30), ("model.base_filters", 1.5),
    ("model.base_kernels", 4), ("model.activation", "relux"), ("model.no_such_knob", 1),
    ("data.fold", True), ("data.data_dir", None), ("data.context_slices", 99),
    ("training.learning_rate", float("nan")), ("training.max_minutes", float("inf")),
    ("training.learning_rate", 10**400), ("training.metrics", 7), ("training.metrics", {"dice": 1}),
    ("training.batch_size", [8]), ("dataset_facts", None), ("dataset_facts.name", None),
    ("dataset_facts.label_scheme", []), ("dataset_facts.label_scheme.1.color", "red"),
    ("dataset_facts.label_scheme.1.color.0", float("nan")),
    ("dataset_facts.label_scheme.1.name", 5), ("dataset_facts.label_scheme.1", MISSING),
    ("dataset_facts.slice_plan", 7), ("dataset_facts.slice_plan.axes", None),
    ("dataset_facts.slice_plan.plane", ["axial"]), ("dataset_facts.intensity.low", "dark"),
    ("dataset_facts.spacing_mm", [1.0]), ("dataset_facts.spacing_mm", [1.0, -1.0]),
    ("dataset_facts.isotropic_mm", "1"), ("dataset_facts.bias_correction", "n3"),
    ("reasons", 4), ("reasons", {"fold": 4}),
    ("augmentation.rotation_degrees", "many"), ("laterality", []), ("laterality.mirroring", "no"),
]  # fmt: skip


def edited(values, path: str, value):
  """Returns JSON with the entry at "part.name" set, or removed."""
  if not path:
    return value
  changed = owner = copy.deepcopy(values)
  *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
  for name in parents:
    owner = owner[name]
  if value is MISSING:
    del owner[last]
  else:
    owner[last] = value
  return changed


@pytest.mark.parametrize(("path", "value"), ODD_EDITS)
def test_an_odd_edit_of_the_config_is_one_line_that_names_the_file(tmp_path, path, value):
  run = run_folder.RunFolder(tmp_path)
  values = json.loads(json.dumps(run_samples.run_config().to_json()))
  run.config_json.write_text(json.dumps(edited(values, path, value)))
  with pytest.raises(InputError, match=r"config\.json must be as the run wrote it") as caught:
    run.read_config()
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"model": 1' + "0" * 5000 + "}", "\xff"])
def test_a_config_that_is_no_json_is_one_line(tmp_path, text):
  run = run_folder.RunFolder(tmp_path)
  run.config_json.write_bytes(text.encode("latin-1"))
  with pytest.raises(InputError, match=r"config\.json must be readable JSON"):
    run.read_config()


@pytest.fixture
def started(tmp_path):
  """A run folder as the trainer leaves it before its first validation."""
  run = run_folder.RunFolder.create(tmp_path / "run")
  run.write_config(run_samples.run_config())
  files.write_json(run.manifest_json, run_folder.started_with(run_samples.run_config()))
  return run


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.batch_size", 8, r"training\.batch_size was 4, now it is 8"),
        ("training.loss", MISSING, r'training\.loss was "dice", now it is not there'),
        ("data.crop_foreground", True, r"data\.crop_foreground was false, now it is true"),
        ("dataset_facts.label_scheme.1.name", "white_matter", r"dataset_facts\.label_scheme was"),
        ("laterality.mirroring", False, r"laterality\.mirroring was true, now it is false"),
        ("model.activation", "elu", r'model\.activation was "relu", now it is "elu"'),
    ],
)
def test_an_edited_config_is_refused_with_what_differs(started, path, value, message):
  values = json.loads(started.config_json.read_text())
  started.config_json.write_text(json.dumps(edited(values, path, value)))
  with pytest.raises(InputError, match=message):
    started.read_config()


@pytest.mark.parametrize(
    ("path", "value"), [("data.data_dir", "/moved"), ("training.epochs", 9), ("reasons", {})]
)
def test_what_may_change_at_a_resume_may_be_edited(started, path, value):
  values = json.loads(started.config_json.read_text())
  started.config_json.write_text(json.dumps(edited(values, path, value)))
  started.read_config()


def write_model(path, filters: int = 4, weights: bytes = b"") -> None:
  """Writes the layers of the network of `run_samples.run_config` as a .keras file has them."""
  conv = {"filters": filters, "kernel_size": [3, 3], "dilation_rate": [1, 1], "activation": "relu",
          "kernel_initializer": {"class_name": "HeNormal"}}  # fmt: skip
  layers = {"image": {"batch_shape": [None, 32, 32, 1]}, "encoder0_conv0": conv, "pool0": {},
            "encoder0_conv1": conv, "encoder1_conv0": {**conv, "filters": 2 * filters},
            "encoder1_conv1": {**conv, "filters": 2 * filters},
            "head": {"filters": 3}, "scale": {}}  # fmt: skip
  entries = [{"class_name": "Rescaling", "config": {"name": name, **values}}
             for name, values in layers.items()]  # fmt: skip
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("config.json", json.dumps({"config": {"layers": entries}}))
    archive.writestr("model.weights.h5", weights)


def test_only_the_network_that_the_run_wrote_is_taken(started, tmp_path):
  for weights in (b"first", b"better"):
    write_model(tmp_path / "partial", weights=weights)
    started.replace_model(tmp_path / "partial")
    started.check_model()
  written = started.model_keras.read_bytes()
  flipped = bytearray(written)
  flipped[len(flipped) // 2] ^= 1
  write_model(tmp_path / "other", weights=b"of another run")
  for other in (bytes(flipped), (tmp_path / "other").read_bytes()):
    started.model_keras.write_bytes(other)
    with pytest.raises(InputError, match=r"must be the network that the run wrote.*put the file"):
      started.check_model_kept()
  started.model_keras.write_bytes(written)
  started.check_model_kept()
  started.model_keras.unlink()
  with pytest.raises(InputError, match=r"model\.keras must be there"):
    started.check_model_kept()


def test_a_network_of_another_shape_is_refused_where_no_hash_is_known(started):
  files.write_json(started.manifest_json, {})
  write_model(started.model_keras, filters=8)
  with pytest.raises(InputError, match="whose base_filters is 4. Got: 8"):
    started.check_model()


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_kill_while_the_network_is_replaced_leaves_no_false_alarm(
    started, tmp_path, monkeypatch, kill_at
):
  class Killed(BaseException):
    pass

  left = [0]

  def counted(act):
    def wrapped(*arguments):
      left[0] -= 1
      if not left[0]:
        raise Killed
      return act(*arguments)

    return wrapped

  write_json, replace = files.write_json, type(tmp_path).replace
  monkeypatch.setattr(files, "write_json", counted(write_json))
  monkeypatch.setattr(type(tmp_path), "replace", counted(replace))
  for weights in (b"first", b"second", b"third"):  # Killed each time, and resumed.
    write_model(tmp_path / "partial", weights=weights)
    left[0] = kill_at  # Before the hash is written, the file replaced, the old hash removed.
    with pytest.raises(Killed):
      started.replace_model(tmp_path / "partial")
    left[0] = 0
    started.check_model_kept()
  write_model(tmp_path / "partial", weights=b"fourth")
  started.replace_model(tmp_path / "partial")
  started.check_model_kept()


@pytest.mark.parametrize("text", ["[]", "{", '{"model_sha256": 3}', '{"started_with": 3}'])
def test_a_damaged_manifest_is_refused(started, text):
  started.manifest_json.write_text(text)
  with pytest.raises(InputError, match=r"manifest\.json must be"):
    started.read_config()
