"""`flexunet verify --privacy` finds what must not be passed on, in every kind of file."""

import base64
import gzip
import io
import json
import pathlib
import socket
import struct
import zipfile
import zlib

import build_samples
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from flexunet.core.errors import InputError
from flexunet.datasets.builder import build_tool, tfrecord
from flexunet.tools import privacy_scan, verify_records
from flexunet.tools.privacy_scan import Sought

HOME = b"/home/otto/data"


@pytest.fixture(autouse=True)
def eva(monkeypatch):
  """The user is eva_kuhn on the machine ward7."""
  for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
    monkeypatch.setenv(name, "eva_kuhn")
  monkeypatch.setattr(socket, "gethostname", lambda: "ward7.clinic.org")


def found_in(folder: pathlib.Path, **given) -> list[tuple[str, str]]:
  return [(one.where, one.what) for one in privacy_scan.scan(folder, Sought(**given)).findings]


def png(text: dict[str, str] | None = None, compressed: bool = False) -> bytes:
  info = PngImagePlugin.PngInfo()
  for key, value in (text or {}).items():
    info.add_text(key, value, zip=compressed)
  stream = io.BytesIO()
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "PNG", pnginfo=info)
  return stream.getvalue()


def jpeg(comment: bytes) -> bytes:
  stream = io.BytesIO()
  exif = Image.Exif()
  exif[0x013B] = comment.decode()  # Artist.
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "JPEG", exif=exif)
  return stream.getvalue()


def shard(**features: bytes) -> bytes:
  values = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for name, value in features.items()}  # fmt: skip
  payload = tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()
  return tfrecord.frame(payload, tfrecord.masked_crc(payload))


def event(text: str) -> bytes:
  payload = tf.compat.v1.Event(file_version=text).SerializeToString()
  return tfrecord.frame(payload, tfrecord.masked_crc(payload))


def archive(**members: bytes) -> bytes:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
    for name, content in members.items():
      made.writestr(name, content)
  return stream.getvalue()


def dicom() -> bytes:
  name = b"MEIER^OTTO"
  element = b"\x10\x00\x10\x00PN" + struct.pack("<H", len(name)) + name
  return bytes(128) + b"DICM" + element


def long_text() -> bytes:
  return b"x" * 5000 + b" " + HOME


FILES = {
    "report.json": (json.dumps({"a": [{"path": HOME.decode()}]}).encode(), "a home folder"),
    "win.json": (json.dumps({"p": "C:\\Users\\eva\\x"}).encode(), "a home folder"),
    "mac.txt": (b"see /Users/eva/x", "a home folder"),
    "t.csv": (b"key,subject\n1,a\n2,kuhn@clinic.org\n", "an e-mail address"),
    "people.csv": (b"key,birth_date\n1,2\n", "a column on patients"),
    "patient.json": (b'{"PatientBirthDate": "19540312"}', "an entry on a patient"),
    "page.html": (b"<p>on WARD7 today</p>", "the name of this machine"),
    "user.log": (b"run by eva_kuhn\n", "the name of this user"),
    "chart.html": (b'<img src="data:image/png;base64,' + base64.b64encode(
        png({"Author": HOME.decode()})) + b'">', "a home folder"),
    "a.png": (png({"Comment": HOME.decode()}), "a home folder"),
    "b.png": (png({"Comment": "kuhn@clinic.org " * 9}, compressed=True), "an e-mail address"),
    "c.jpg": (jpeg(b"eva_kuhn"), "the name of this user"),
    "x-train.tfrecord-00000-of-00001": (shard(subject=b"eva_kuhn"), "the name of this user"),
    "y-train.tfrecord-00000-of-00001": (shard(image=png({"a": HOME.decode()})), "a home folder"),
    "events.out.tfevents.1.2.v2": (event("by kuhn@clinic.org"), "an e-mail address"),
    "events.out.tfevents.1.ward7.2": (event("nothing"), "the name of this machine"),
    "examples.npz": (archive(**{"eva_kuhn.npy": b"x"}), "the name of this user"),
    "model.keras": (archive(**{"config.json": long_text()}), "a home folder"),
    "label.nii.gz": (gzip.compress(b"descrip " + HOME), "a home folder"),
    "weights.bin": (zlib.compress(b"1") + HOME, "a home folder"),
    "scan.dcm": (dicom(), "the name of a patient (DICOM)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_is_looked_through(tmp_path, name):
  content, what = FILES[name]
  (tmp_path / name).write_bytes(content)
  [(where, found)] = found_in(tmp_path)
  assert found == what and where.startswith(name)


def test_the_name_of_the_file_in_a_gzip_header_is_found(tmp_path):
  stream = io.BytesIO()
  with gzip.GzipFile("eva_kuhn.nii", "wb", fileobj=stream) as packed:
    packed.write(b"voxels")
  (tmp_path / "x.nii.gz").write_bytes(stream.getvalue())
  assert found_in(tmp_path) == [
      ("x.nii.gz, the file name in its gzip header", "the name of this user")]


@pytest.mark.parametrize(
    "text",
    ["https://example.org/home/page", "the user home", "a@b", "Patient-1, patientnumber",
     "reward7x and ward77", "subject_eva2", "no date of birth is stored"],
)  # fmt: skip
def test_harmless_words_are_no_findings(tmp_path, text):
  (tmp_path / "a.txt").write_text(text)
  assert found_in(tmp_path) == []


def test_random_bytes_are_no_findings(tmp_path):
  content = np.random.default_rng(0).bytes(4 << 20)
  (tmp_path / "weights.bin").write_bytes(content)
  (tmp_path / "x.tfrecord-00000-of-00001").write_bytes(shard(image=content))
  (tmp_path / "m.keras").write_bytes(archive(weights=content))
  assert found_in(tmp_path) == []


def test_what_lies_between_two_chunks_is_found(tmp_path, monkeypatch):
  monkeypatch.setattr(privacy_scan, "_CHUNK_BYTES", 4096)
  (tmp_path / "weights.bin").write_bytes(b"\x01" * 4090 + HOME + b"\x01" * 5000)
  assert found_in(tmp_path) == [("weights.bin", "a home folder")]


def test_authors_of_the_published_data_may_be_named(tmp_path):
  key = tmp_path / "key.json"
  key.write_text(json.dumps({"salt": "00" * 32, "subjects": {"subject_1": "Jafari_Anna"}}))
  folder = tmp_path / "data"
  folder.mkdir()
  (folder / "dataset_info.json").write_text(json.dumps({"citation": "Jafari, K.", "name": "x"}))
  assert found_in(folder, key_file=key) == []
  (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "name": "jafari"}))
  assert found_in(folder, key_file=key) == [("dataset_info.json", "a name of the key file")]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  root = tmp_path_factory.mktemp("built")
  raw = build_samples.raw_folder("hippocampus_t1w", root / "raw")
  (raw / "Train" / "Letter Hoyer.txt").write_text("private")
  options = {"num_workers": 1, "subject_names": "pseudonym", "key_file": root / "key.json"}
  return raw, root, build_tool.build_dataset("hippocampus_t1w", raw, root / "data", **options)


def test_a_built_dataset_holds_nothing_private_and_one_that_does_is_refused(
    built, tmp_path
):
  raw, root, folder = built
  given = {"key_file": root / "key.json", "manual_dir": raw}
  found = privacy_scan.scan(folder, Sought(**given)).findings
  assert [(one.where, one.text) for one in found] == []
  result = privacy_scan.scan(folder, Sought(**given))
  assert "shards of records" in result.looked_at() and result.records > 20
  kept = build_tool.build_dataset("hippocampus_t1w", raw, tmp_path, num_workers=1,
                                  subject_names="keep")  # fmt: skip
  found = dict(found_in(kept, **given))
  assert set(found.values()) == {"a name of the key file"}
  assert {where.partition(",")[0].partition("-")[0] for where in found} >= {
      "build_report.json", "records.csv", "hippocampus_t1w"
  }


def run_verify(*arguments, capsys):
  """Returns (exit code, standard output, standard error)."""
  from flexunet.core import command_line

  code = 0
  try:
    command_line.run(verify_records.main, verify_records._PROGRAM,
                     argv=["verify", *map(str, arguments)])  # fmt: skip
  except SystemExit as end:
    code = end.code
  return (code, *capsys.readouterr())


def test_the_command_says_what_and_where_or_what_it_looked_at(built, tmp_path, capsys):
  _, root, folder = built
  code, out, _ = run_verify(folder, "--privacy", f"--key_file={root / 'key.json'}", capsys=capsys)
  assert code == 0 and "nothing private found; looked through" in out
  assert "home folders" in out and "names of the key file" in out
  (tmp_path / "notes.txt").write_bytes(b"first\n" + HOME)
  code, _, err = run_verify(tmp_path, "--privacy", capsys=capsys)
  assert code == 1 and "  notes.txt, line 2: a home folder: /home/otto" in err


def test_a_wrong_folder_is_one_line(built, tmp_path, capsys):
  run = tmp_path / "run"
  run.mkdir()
  (run / "config.json").write_text("{}")
  (run / "manifest.json").write_text("{}")
  _, root, folder = built
  for arguments, said in (
      ((run,), "is a run folder; verify expects a built dataset"),
      ((folder / "records.csv",), "is a file. Name the folder of a built dataset"),
      ((tmp_path / "none",), "there is no such folder"),
      ((root / "raw",), "holds no built dataset"),
      ((folder, f"--key_file={root / 'key.json'}"), "--key_file is of --privacy"),
      ((folder, "--privacy", "--key_file=/none"), "--key_file /none: there is no such file"),
      ((tmp_path / "none", "--privacy"), "there is no such folder. Name a dataset or a run"),
      ((folder, "--privacy", "--manual_dir=/none"), "--manual_dir /none: there is no such folder"),
      ((), "Usage: flexunet verify DIR"),
  ):
    code, _, err = run_verify(*arguments, capsys=capsys)
    assert code == 1 and said in err and len(err.splitlines()) == 1, err
  with pytest.raises(InputError, match="holds no file"):
    (tmp_path / "empty").mkdir()
    privacy_scan.scan(tmp_path / "empty", Sought())
