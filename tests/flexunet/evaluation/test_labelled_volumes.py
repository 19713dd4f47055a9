"""Volumes are put together from records, and a record that cannot be read is named."""

import dataset_samples
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import labelled_volumes
from flexunet.pipelines import readers
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.tools import preview_augmentation


@pytest.fixture
def damaged(tmp_path):
  """A dataset of two volumes, of which the third record is damaged, and its table."""
  records = []
  for place in range(4):
    image, label = dataset_samples.blob_slice(20, 26, seed=place)
    subject = "ab"[place // 2]
    records.append({"image": image, "label": label, "subject": subject,
                    "volume": f"{subject}_scan", "slice_index": place % 2})  # fmt: skip
  path = dataset_samples.write_dataset(tmp_path, {"test": records})
  source = open_dataset(None, path)
  table = source.records("test")
  [shard] = path.glob("*test.tfrecord*")
  data = bytearray(shard.read_bytes())
  data[int(table.offset[2]) + 40] ^= 1
  shard.write_bytes(data)
  return source, table


def test_a_damaged_record_is_named(damaged):
  with pytest.raises(InputError, match=r"record 2 of blobs-test.*\(subject b, slice 0\)") as caught:
    list(labelled_volumes.read_volumes(*damaged))
  assert "\n" not in str(caught.value)


def test_a_damaged_record_is_named_where_examples_are_drawn(damaged):
  with pytest.raises(InputError, match="record 2 of blobs-test"):
    preview_augmentation.pick_examples(damaged[0], "test", "image", "label", 4)


def test_other_faults_keep_their_trace(damaged):
  with pytest.raises(ZeroDivisionError), readers.named_record(damaged[1], lambda: 0):
    raise ZeroDivisionError
