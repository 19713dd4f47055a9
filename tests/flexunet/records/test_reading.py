"""Records without TensorFlow: the values of tf.data, whoever reads them, and what is refused."""

import concurrent.futures
import hashlib
import multiprocessing
import pathlib
import pickle
import shutil
import subprocess
import sys

import build_samples
import numpy as np
import pytest
import scan_folders
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.evaluation import labelled_volumes
from flexunet.pipelines import readers
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.records import open_records

FORMS = ("slices", "volumes", "slices_array_record", "volumes_array_record")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Form -> version folder of one raw folder with two channels a scan."""
  folder = tmp_path_factory.mktemp("records")
  scan_folders.nnunet(folder / "raw", channels=("FLAIR", "T1"), count=7)
  made = {}
  for form in FORMS:
    config, _, container = form.partition("_")
    builder = build_samples.build(
        f"scan_label/{config}", folder / "raw", folder / form,
        file_format=container or "tfrecord",
    )  # fmt: skip
    made[form] = pathlib.Path(builder.data_path)
  return made


def digest(record: dict) -> str:
  """Returns a hash of all values of a record, with their types and shapes."""
  digest = hashlib.sha256()
  for name, value in sorted(record.items()):
    value = np.asarray(value.encode() if isinstance(value, str) else value)
    digest.update(repr((name, value.dtype, value.shape, value.tobytes())).encode())
  return digest.hexdigest()


def digests_of_tensorflow(folder: pathlib.Path, split: str) -> list[str]:
  stream = tfds.builder_from_directory(folder).as_dataset(split, shuffle_files=False)
  return [digest(record) for record in stream.as_numpy_iterator()]


@pytest.mark.parametrize("form", FORMS)
def test_the_values_are_those_of_tf_data(built, form):
  # TFDS reads no array_record by tf.data: its records are those of the other container.
  reference = built[form.removesuffix("_array_record")]
  for split in ("train", "validation", "test"):
    found = [digest(record) for record in open_records(built[form], split)]
    assert found == digests_of_tensorflow(reference, split) and found


@pytest.mark.realdata
def test_the_values_of_real_scans_are_those_of_tf_data(realdata_tree, tmp_path):
  raw = realdata_tree("hippocampus_t1w", 3)
  for config in ("slices", "volumes"):
    folder = pathlib.Path(build_samples.build(f"hippocampus_t1w/{config}", raw, tmp_path).data_path)
    for split in tfds.builder_from_directory(folder).info.splits:
      found = [digest(record) for record in open_records(folder, split)]
      assert found == digests_of_tensorflow(folder, split)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_threads_forks_and_spawned_processes_read_the_same(built, form):
  records = open_records(built[form])
  expected = [digest(record) for record in records]
  numbers = range(len(records))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda number: digest(records[number]), numbers)) == expected
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
    assert list(pool.map(_digest_of, [records] * 3, numbers[:3])) == expected[:3]
    # This process may hold threads that other tests have started (TensorFlow, Beam, gRPC), and
    # cannot be forked safely: a new one is.
    assert pool.submit(_digests_of_forks, records, numbers[:3]).result() == expected[:3]


def _digest_of(records, number: int) -> str:
  return digest(records[number])


def _digests_of_forks(records, numbers) -> list[str]:
  """Reads a record, and has forks of this process read those named."""
  digest(records[0])
  context = multiprocessing.get_context("fork")
  with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
    return list(pool.map(_digest_of, [records] * len(numbers), numbers))


def test_a_forked_process_reads_what_its_parent_has_opened(built):
  for form in ("slices", "slices_array_record"):
    records = open_records(built[form])
    expected = digest(records[0])
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(digest(records[0])))  # noqa: B023
    child.start()
    assert receive.poll(60) and receive.recv() == expected
    child.join()


def test_a_sequence_ends_takes_negative_numbers_and_numpy_ones(built):
  records = open_records(built["slices"], features=["slice_index", "subject"])
  assert len(list(records)) == len(records)
  assert records[-1] == records[np.int64(len(records) - 1)]
  assert set(records[0]) == {"slice_index", "subject"}
  with pytest.raises(IndexError):
    records[len(records)]
  assert "train" in repr(records)


def test_a_pickled_copy_holds_no_pixels_and_names_once(built):
  records = open_records(built["slices"])
  again = pickle.loads(pickle.dumps(records))  # noqa: S301  Written in the line itself.
  assert digest(again[2]) == digest(records[2])
  assert again.subjects == records.subjects and again.class_names == records.class_names


@pytest.mark.parametrize("fold", [0, 1, 2, 3, 4])
def test_a_fold_has_the_rows_of_the_trainer(built, fold):
  source = open_dataset(None, built["slices"])
  if fold not in {*source.records("train").fold, *source.records("validation").fold}:
    with pytest.raises(InputError, match="--fold must be a fold of"):
      open_records(built["slices"], fold=fold)
    return
  tables = readers.split_tables(source, "train", "validation", fold)
  for split, table in zip(("train", "validation"), tables, strict=True):
    records = open_records(built["slices"], split, fold=fold)
    assert records.table.subject.tolist() == table.subject.tolist()
    assert records.table.offset.tolist() == table.offset.tolist()
    assert [records[row]["slice_index"] for row in range(5)] == table.slice_index[:5].tolist()


def test_a_fold_divides_train_and_validation_alone(built):
  with pytest.raises(InputError, match="divides the splits train and validation. Got: split='te"):
    open_records(built["slices"], "test", fold=0)


@pytest.mark.parametrize("form", ["slices", "slices_array_record"])
def test_volumes_are_those_that_evaluation_reads(built, form):
  records = open_records(built[form], "train")
  source = open_dataset(None, built[form])
  theirs = list(labelled_volumes.read_volumes(source, readers.slice_table(source, "train")))
  assert records.num_volumes == len(theirs) == len(records.subjects)
  for ours, volume in zip(records.volumes(), theirs, strict=True):
    assert (ours.subject, ours.volume) == (volume.subject, volume.volume)
    assert ours.slice_index.tolist() == volume.slice_index
    np.testing.assert_array_equal(ours.image, np.stack(volume.images))
    np.testing.assert_array_equal(ours.label, np.stack(volume.labels))
    assert ours.image.shape[-1] == 2
    expected = [volume.slice_spacing_mm, *volume.spacing_mm]
    np.testing.assert_array_equal(ours.spacing_mm, expected)


def test_a_whole_scan_is_in_the_intensities_of_its_file(built):
  records = open_records(built["volumes"])
  volume, record = records.volume(0), records[0]
  for channel, suffix in enumerate(("", "_2")):
    scaled = record[f"image{suffix}"] * record[f"scale_slope{suffix}"]
    np.testing.assert_allclose(
        volume.image[..., channel], scaled + record[f"scale_inter{suffix}"], rtol=1e-6
    )
  assert volume.label.shape == volume.image.shape[:3] and volume.affine.shape == (4, 4)


def test_some_records_can_be_taken(built):
  records = open_records(built["slices"])
  name = records.subjects[1]
  taken = records.take(records.table.subject == name)
  assert taken.subjects == [name] and taken.num_volumes == 1
  assert {record["subject"] for record in taken} == {name}


def test_a_dataset_without_a_table_is_read_by_its_headers(built, tmp_path):
  for form in ("slices", "slices_array_record"):
    folder = tmp_path / form / "1.0.0"
    shutil.copytree(built[form], folder)
    expected = [digest(record) for record in open_records(folder)]
    for name in ("records.csv", "checksums.json", "build_report.json"):
      (folder / name).unlink()
    found = open_records(folder)
    assert [digest(record) for record in found] == expected
    assert found.class_names[0] == "background"


@pytest.fixture
def copy(built, tmp_path):
  def of(form: str) -> tuple[pathlib.Path, pathlib.Path]:
    folder = tmp_path / form / "1.0.0"
    shutil.copytree(built[form], folder)
    shards = sorted(folder.glob("*-train.*"))
    return folder, shards[0]

  return of


@pytest.mark.parametrize("form", ["slices", "volumes"])
def test_changed_bytes_of_a_record_are_named(copy, form):
  folder, shard = copy(form)
  data = bytearray(shard.read_bytes())
  data[60] ^= 4
  shard.write_bytes(data)
  records = open_records(folder)
  with pytest.raises(InputError, match=r"the record at byte 0 .*its bytes changed \(checksum\)"):
    records[0]
  records[len(records) - 1]


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_and_a_missing_shard_are_refused_at_once(copy, form):
  folder, shard = copy(form)
  data = shard.read_bytes()
  shard.write_bytes(data[: len(data) // 2])
  with pytest.raises(InputError, match=str(shard)):
    open_records(folder)
  shard.unlink()
  with pytest.raises(InputError, match=f"{shard}: the shard is missing"):
    open_records(folder)


def test_changed_bytes_of_an_array_record_are_named(copy):
  folder, shard = copy("slices_array_record")
  data = bytearray(shard.read_bytes())
  # The records lie in the first half; the end of the file is its index.
  for place in range(200, len(data) // 2, 50):
    data[place] ^= 255
  shard.write_bytes(data)
  with pytest.raises(InputError, match=str(shard)):
    list(open_records(folder))


def test_wrong_names_are_one_line(built, tmp_path):
  with pytest.raises(InputError, match="there is no such folder"):
    open_records(tmp_path / "nothing")
  with pytest.raises(InputError, match="holds no built dataset|holds: nothing"):
    open_records(tmp_path)
  with pytest.raises(InputError, match="'trian'"):
    open_records(built["slices"], "trian")
  with pytest.raises(InputError, match="Unknown feature 'imge'"):
    open_records(built["slices"], features=["imge"])
  parent = built["slices"].parent.parent.parent
  assert len(open_records(parent, dataset="scan_label")) == len(open_records(built["slices"]))


def test_a_file_that_changed_since_the_build_is_refused(copy):
  folder, _ = copy("slices")
  with open(folder / "records.csv", "a") as stream:
    stream.write("\n")
  with pytest.raises(InputError, match="records.csv changed since"):
    open_records(folder)


# What an installation for readers alone lacks.
_ABSENT = ("tensorflow", "tensorflow_datasets", "keras", "nibabel", "scipy", "tqdm", "wrapt",
           "absl", "matplotlib", "google", "apache_beam", "etils", "jax", "torch")  # fmt: skip
_WITHOUT = """
import sys, time
class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {absent}:
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
began = time.process_time()
from flexunet.records import open_records
seconds = time.process_time() - began
for folder in sys.argv[1:]:
  records = open_records(folder)
  print(len(records), len([record for record in records]), records.volume(0).label.shape)
assert seconds < 1.0, seconds
"""


def test_numpy_and_pillow_suffice_and_the_import_takes_less_than_a_second(built):
  program = _WITHOUT.replace("{absent}", repr(set(_ABSENT)))
  folders = [str(built["slices"]), str(built["volumes"])]
  done = subprocess.run(
      [sys.executable, "-c", program, *folders], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == 2
