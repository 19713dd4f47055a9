"""The streams: same batches whatever the threads, caches, hosts and starting points."""

import numpy as np
import pytest
from batch_samples import SIZE, content, make_loader, make_order

from flexunet.core.errors import InputError
from flexunet.pipelines import batches, cache, order, readers, resizing


def test_a_batch_keeps_its_contract(source):
  loader = make_loader(source, image_channels=3)
  stream = batches.training_batches(loader, make_order(loader))
  assert int(stream.cardinality()) == 3
  batch = next(stream.as_numpy_iterator())
  assert batch["image"].shape == (4, *SIZE, 3) and batch["image"].dtype == np.uint8
  assert batch["label"].shape == (4, *SIZE) and batch["label"].dtype == np.uint8
  assert batch["record"].shape == batch["valid"].shape == (4,)
  # Dim is 120 and bright 240 in these images: image and label belong together.
  grey = batch["image"][..., 0]
  assert (grey[batch["label"] == 1] == 120).all() and (grey[batch["label"] == 2] == 240).all()


@pytest.fixture(scope="module")
def whole(source):
  """Nine steps, three epochs, plain."""
  loader = make_loader(source)
  return content(batches.training_batches(loader, make_order(loader), num_steps=9))


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("mode", ["none", "ram", "disk"])
def test_threads_and_caches_change_nothing(source, whole, tmp_path, threads, mode):
  loader = make_loader(source)
  cached = None
  if mode != "none":
    cached = cache.fill(loader, cache.Choice(mode, ""), tmp_path, "key")
  stream = batches.training_batches(
    loader, make_order(loader), num_steps=9, cache=cached, threads=threads
  )
  assert content(stream) == whole


@pytest.mark.parametrize("start", [0, 1, 3, 4, 8])
def test_a_start_in_the_middle_continues_as_the_whole(source, whole, start):
  loader = make_loader(source)
  stream = batches.training_batches(
    loader, make_order(loader), start_step=start, num_steps=9 - start
  )
  assert content(stream) == whole[start:]


def test_two_hosts_together_read_what_one_reads(source):
  loader = make_loader(source)
  one = list(batches.training_batches(loader, make_order(loader)).as_numpy_iterator())
  halves = [
      list(batches.training_batches(
          loader, make_order(loader), host=batches.Host(index, 2)).as_numpy_iterator())
      for index in (0, 1)
  ]  # fmt: skip
  for batch, left, right in zip(one, *halves, strict=True):
    for key, values in batch.items():
      np.testing.assert_array_equal(values, np.concatenate([left[key], right[key]]))


def test_two_hosts_together_evaluate_each_record_once(source):
  loader = make_loader(source)
  size = 4 if loader.num_rows % 4 else 8  # The last batch is filled up.
  one = list(batches.evaluation_batches(loader, size).as_numpy_iterator())
  halves = [
      list(batches.evaluation_batches(
          loader, size, host=batches.Host(index, 2)).as_numpy_iterator())
      for index in (0, 1)
  ]  # fmt: skip
  seen = []
  for batch, left, right in zip(one, *halves, strict=True):
    for key, values in batch.items():
      np.testing.assert_array_equal(values, np.concatenate([left[key], right[key]]))
    seen += batch["record"][batch["valid"]].tolist()
  assert seen == list(range(loader.num_rows))
  with pytest.raises(ValueError, match="must be a multiple of 2 hosts"):
    batches.evaluation_batches(loader, 3, host=batches.Host(0, 2))


@pytest.mark.parametrize("mode", ["none", "ram"])
def test_augmentation_gets_a_seed_of_its_own_for_each_example_and_epoch(source, tmp_path, mode):
  import tensorflow as tf

  loader = make_loader(source)
  cached = cache.fill(loader, cache.Choice(mode, ""), tmp_path, "k") if mode == "ram" else None

  def write_seed(image, label, seed):
    drawn = tf.random.stateless_uniform((), seed, 0, 256, tf.int32)
    return tf.fill(tf.shape(image), tf.cast(drawn, tf.uint8)), label

  def seeds(start):
    stream = batches.training_batches(
        loader, make_order(loader), start_step=start, num_steps=6 - start, cache=cached,
        augment=write_seed,
    )  # fmt: skip
    assert int(stream.cardinality()) == 6 - start
    return [batch["image"][:, 0, 0, 0].tolist() for batch in stream.as_numpy_iterator()]

  drawn = seeds(0)
  assert seeds(4) == drawn[4:]
  assert len({value for values in drawn for value in values}) > 12


def test_evaluation_reads_every_record_once_and_marks_what_fills_up(source):
  loader = make_loader(source, "validation")
  read = list(batches.evaluation_batches(loader, 3).as_numpy_iterator())
  rows = np.concatenate([batch["record"] for batch in read])
  valid = np.concatenate([batch["valid"] for batch in read])
  assert rows[valid].tolist() == [0, 1, 2, 3] and len(rows) == 6


@pytest.mark.parametrize("cached", [False, True])
def test_evaluation_reads_chosen_rows_in_their_order(source, cached):
  loader = make_loader(source, "validation")
  cached = cache.fill(loader, cache.Choice("ram", ""), None, "") if cached else None
  chosen = np.array([3, 0, 2])
  read = list(batches.evaluation_batches(loader, 2, cache=cached, rows=chosen).as_numpy_iterator())
  rows = np.concatenate([batch["record"] for batch in read])
  valid = np.concatenate([batch["valid"] for batch in read])
  assert rows[valid].tolist() == [3, 0, 2] and len(rows) == 4
  labels = np.concatenate([batch["label"] for batch in read])[valid]
  np.testing.assert_array_equal(labels, [loader(int(row))["label"] for row in chosen])


def test_neighbours_become_channels_and_ends_repeat(source):
  loader = make_loader(source, context_slices=1, image_channels=3)
  plain = make_loader(source)
  table = readers.slice_table(source, "train")
  row = int(np.flatnonzero((table.subject == "b") & (table.slice_index == 0))[0])
  above = int(np.flatnonzero((table.subject == "b") & (table.slice_index == 1))[0])
  # Slices differ in height here, so only the middle one can be compared with equal geometry.
  with pytest.raises(Exception, match=r"[Cc]oncat|Dimension"):
    loader(row)
  rows = readers.neighbour_rows(table, 1)
  assert rows[row].tolist() == [row, row, above]
  assert plain(row)["image"].shape == (*SIZE, 1)


def test_context_needs_the_channels_it_makes():
  with pytest.raises(InputError, match="must be 5"):
    readers.ExampleSpec(resizing=resizing.Resizing(SIZE), context_slices=2, image_channels=3)


def test_folds_cut_by_subject_and_an_unknown_fold_is_refused(source):
  with pytest.raises(InputError, match="It has: 0"):
    readers.split_tables(source, "train", "validation", 3)
  with pytest.raises(InputError, match="must differ"):
    readers.split_tables(source, "train", "train", None)
  with pytest.raises(InputError, match="leaves nothing to train on"):
    readers.split_tables(source, "train", "validation", 0)  # These samples are all of fold 0.


def test_pools_hold_the_foreground(source):
  table = readers.slice_table(source, "train")
  (pool,) = order.pools(table, by_class=False)
  assert set(pool) == set(np.flatnonzero(table.slice_index < 3))
  assert len(order.pools(table, by_class=True)) == 2


def test_corrupt_records_are_found(source, tmp_path):
  import dataclasses
  import pathlib
  import shutil

  table = readers.slice_table(source, "train")
  damaged = tmp_path / pathlib.Path(table.files[0]).name
  shutil.copy(table.files[0], damaged)
  data = bytearray(damaged.read_bytes())
  row = 2
  data[int(table.offset[row]) + 40] ^= 0xFF
  damaged.write_bytes(data)
  bad = dataclasses.replace(table, files=[str(damaged), *table.files[1:]])
  spec = readers.ExampleSpec(resizing=resizing.Resizing(SIZE, "pad"))
  assert readers.ExampleLoader(source, bad, spec).find_corrupt() == [row]
  assert readers.ExampleLoader(source, table, spec).find_corrupt() == []


def test_a_killed_disk_cache_is_made_again_and_a_whole_one_is_taken(source, tmp_path):
  loader = make_loader(source)
  (tmp_path / "key").mkdir()
  (tmp_path / "key" / "images.npy").write_bytes(b"half")  # What a kill might have left.
  choice = cache.Choice("disk", "")
  first = cache.fill(loader, choice, tmp_path, "key")
  made = (tmp_path / "key" / "images.npy").stat().st_mtime_ns
  again = cache.fill(loader, choice, tmp_path, "key")
  assert (tmp_path / "key" / "images.npy").stat().st_mtime_ns == made
  np.testing.assert_array_equal(first.images, again.images)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["key"]


def test_the_cache_key_follows_what_it_holds(source):
  rows = np.arange(3)
  keys = {
    cache.key_of("f", make_loader(source), rows),
    cache.key_of("g", make_loader(source), rows),
    cache.key_of("f", make_loader(source), rows + 1),
    cache.key_of("f", make_loader(source, resizing=resizing.Resizing(SIZE, "fit")), rows),
  }
  assert len(keys) == 4


@pytest.mark.parametrize(
  "mode, needed, memory, disk, expected",
  [
    ("auto", 40, 100, 0, "ram"),
    ("auto", 41, 100, 100, "disk"),
    ("auto", 60, 100, 100, "none"),
    ("none", 1, 100, 100, "none"),
    ("ram", 90, 100, 0, "ram"),
    ("disk", 90, 0, 100, "disk"),
  ],
)
def test_the_cache_takes_what_fits(tmp_path, mode, needed, memory, disk, expected):
  choice = cache.choose(mode, needed, tmp_path, free_memory=memory, free_disk=disk)
  assert choice.mode == expected and choice.reason


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_a_cache_that_cannot_fit_is_refused(tmp_path, mode):
  with pytest.raises(InputError, match=f"--cache={mode} needs"):
    cache.choose(mode, 101, tmp_path, free_memory=100, free_disk=100)


def test_without_a_gpu_batches_stay_as_they_are_with_their_number(source):
  loader = make_loader(source)
  stream = batches.training_batches(loader, make_order(loader))
  assert int(batches.prefetch_to_device(stream).cardinality()) == 3
