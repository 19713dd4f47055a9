"""Patches lie around foreground or anywhere, as their position in the order says."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from batch_samples import SIZE, content, make_loader, make_order

from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import batches, cache, order, patches, readers, resizing
from flexunet.pipelines.augmentation.config import AugmentationConfig

STRONG = AugmentationConfig(augmentation="strong").resolve()
PATCH = (8, 12)


def entries_of(count, target, size_hw=(32, 40), box=None):
  return {
      "seed": tf.constant([[3, number] for number in range(count)]),
      "target": tf.fill([count], tf.constant(target, tf.int32)),
      "content": tf.constant([box or [0, 0, *size_hw]] * count, tf.int32),
  }


def sampler(size_hw=PATCH, **changes):
  return patches.PatchSampler(size_hw, np.zeros((0, 4), np.int32), **changes)


def numbered(count, size_hw=(32, 40)):
  """Returns images whose two channels are row and column, with empty labels."""
  rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
  image = np.stack([rows, columns], axis=-1).astype(np.uint8)
  return np.repeat(image[None], count, axis=0), np.zeros((count, *size_hw), np.uint8)


def test_image_and_label_are_cut_alike():
  image, label = numbered(50)
  label[:] = image[..., 0] + 1  # A class id per row.
  found, ids = sampler()(image, label, entries_of(50, order.ANYWHERE))
  assert found.shape == (50, *PATCH, 2) and ids.shape == (50, *PATCH)
  np.testing.assert_array_equal(ids, found[..., 0] + 1)
  # Neighbours in the patch are neighbours in the slice.
  assert (np.diff(found.numpy()[..., 0].astype(int), axis=1) == 1).all()
  assert (np.diff(found.numpy()[..., 1].astype(int), axis=2) == 1).all()


def test_patches_anywhere_cover_the_slice_up_to_its_corners():
  count = 600
  found, _ = sampler()(*numbered(count), entries_of(count, order.ANYWHERE))
  corners = found.numpy()[:, 0, 0].astype(int)
  assert corners.min() == 0 and (corners.max(axis=0) == [32 - 8, 40 - 12]).all()
  seen = np.zeros((32, 40), int)
  for top, left in corners:
    seen[top : top + 8, left : left + 12] += 1
  # The middle lies a quarter of the edges from the border or further inside, so that a patch ends
  # at a given border in 2 of 28 and in 3 of 34 cases: 4 of 600 in a given corner.
  assert seen.min() >= 1


@pytest.mark.parametrize("target", [order.ANY_CLASS, 2])
def test_patches_around_foreground_hold_a_drawn_pixel_anywhere_in_them(target):
  count = 300
  image, label = numbered(count)
  label[:, 15, 21], label[:, 29, 2] = 2, 1
  ids = sampler()(image, label, entries_of(count, target))[1].numpy()
  if target == 2:
    assert (ids == 2).any(axis=(1, 2)).all()
    # All 96 places of a patch, each equally often: 300 draws miss 4 of them.
    places = np.argwhere(ids == 2)[:, 1:]
    assert len(np.unique(places, axis=0)) > 0.9 * 96
  else:  # Each pixel with the same chance.
    assert (ids > 0).any(axis=(1, 2)).all()
    assert 0.4 < (ids == 1).any(axis=(1, 2)).mean() < 0.6


def test_a_class_that_the_slice_lacks_gives_any_foreground_and_no_foreground_anything():
  image, label = numbered(80)
  label[:40, 20, 20] = 1
  label[40:] = IGNORED  # Counts as no class.
  found, ids = sampler()(image, label, entries_of(80, 2))
  assert (ids.numpy()[:40] == 1).any(axis=(1, 2)).all()
  assert len(np.unique(found.numpy()[40:, 0, 0], axis=0)) > 30


def test_patches_lie_in_the_slice_and_not_in_the_border_around_it():
  count = 200
  found, _ = sampler()(*numbered(count), entries_of(count, order.ANYWHERE, box=[8, 10, 16, 20]))
  corners = found.numpy()[:, 0, 0].astype(int)
  # The middle is at least a quarter of the edges, 2 and 3 pixels, inside of the box.
  assert corners[:, 0].min() >= 8 + 2 - 4 and corners[:, 0].max() <= 8 + 16 - 2 - 4
  assert corners[:, 1].min() >= 10 + 3 - 6 and corners[:, 1].max() <= 10 + 20 - 3 - 6


@pytest.mark.parametrize("augmentation", [None, STRONG])
def test_a_patch_larger_than_the_slice_is_surrounded_by_zeros(augmentation):
  image, label = numbered(4)
  image[:] = 100
  label[:] = 1
  large = sampler((48, 16), augmentation=augmentation)
  found, ids = large(image, label, entries_of(4, order.ANY_CLASS))
  assert found.shape == (4, 48, 16, 2) and ids.shape == (4, 48, 16)
  assert (found.numpy()[:, :8] == 0).all() and (ids.numpy()[:, 40:] == 0).all()
  assert (ids.numpy()[:, 8:40] == 1).mean() > 0.5


@pytest.mark.slow
def test_a_patch_is_a_function_of_its_seed_alone_in_every_form():
  image, label = numbered(6, (40, 40))
  label[:, 5:30, 12:30] = 1
  sample, entries = sampler((16, 16), augmentation=STRONG), entries_of(6, 1, (40, 40))
  together = sample(image, label, entries)
  compiled = tf.function(sample, jit_compile=True)(image, label, entries)
  alone = [
      sample.example(image[n], label[n], {name: one[n] for name, one in entries.items()})
      for n in range(6)
  ]
  for found in (compiled, [np.stack([a[k] for a in alone]) for k in range(2)]):
    off = np.abs(np.asarray(found[0]).astype(int) - together[0].numpy())
    assert (off > 1).mean() < 1e-3
    assert (np.asarray(found[1]) != together[1].numpy()).mean() < 1e-3


def classes_in_turns(**changes):
  return order.EpochOrder(
      num_records=20, batch_size=8, seed=1, drawn=3, pools=(np.arange(5), np.arange(9)),
      pool_classes=(1, 3), **changes,
  )  # fmt: skip


def test_classes_take_turns_as_their_slices_do():
  made = classes_in_turns(centered=4)
  positions = tf.range(24, dtype=tf.int64)
  targets = made.targets_at(positions).numpy().reshape(3, 8)
  # Three slices a step are drawn for the classes 1, 3, 1, 3, ...; the fourth is any slice.
  assert targets[:, :3].tolist() == [[1, 3, 1], [3, 1, 3], [1, 3, 1]]
  assert (targets[:, 3] == order.ANY_CLASS).all() and (targets[:, 4:] == order.ANYWHERE).all()
  rows = made.records_at(positions)[0].numpy().reshape(3, 8)
  assert (rows[:, :3][targets[:, :3] == 1] < 5).all()


def test_fewer_patches_around_foreground_than_slices_drawn_for_it():
  targets = classes_in_turns(centered=2).targets_at(tf.range(8, dtype=tf.int64)).numpy()
  assert targets.tolist() == [1, 3] + 6 * [order.ANYWHERE]


@pytest.mark.parametrize(
    ("changes", "message"), [({"centered": 9}, "0..8"), ({"pool_classes": (1,)}, "one for each")]
)
def test_an_order_that_cannot_be_is_refused(changes, message):
  values = {"num_records": 20, "batch_size": 8, "seed": 1, "drawn": 3,
            "pools": (np.arange(5), np.arange(9)), **changes}  # fmt: skip
  with pytest.raises(ValueError, match=message):
    order.EpochOrder(**values)


def test_pools_know_their_class(source):
  table = readers.slice_table(source, "train")
  for by_class in (False, True):
    pools = order.pools(table, by_class=by_class)
    classes = order.pool_classes(table, by_class=by_class)
    assert len(pools) == len(classes)
    for rows, class_id in zip(pools, classes, strict=True):
      assert class_id == order.ANY_CLASS or (table.pixels[rows, class_id] > 0).all()


def stream_parts(source, augmentation=None):
  """Returns (loader, order, sampler) of patches of the blobs."""
  loader, table = make_loader(source), readers.slice_table(source, "train")
  made = make_order(loader, batch_size=6, drawn=3, centered=3,
                    pools=order.pools(table, by_class=True),
                    pool_classes=order.pool_classes(table, by_class=True))  # fmt: skip
  boxes = patches.content_boxes(table, loader.spec.resizing)
  return loader, made, patches.PatchSampler(PATCH, boxes, augmentation)


def test_a_stream_of_patches_is_the_same_with_any_cache_and_from_any_step(source, tmp_path):
  loader, made, sample = stream_parts(source)
  whole = content(batches.training_batches(loader, made, num_steps=6, patches=sample))
  for mode in ("ram", "disk"):
    kept = cache.fill(loader, cache.Choice(mode, ""), tmp_path, "key")
    later = batches.training_batches(
        loader, made, start_step=2, num_steps=4, patches=sample, cache=kept
    )
    assert content(later) == whole[2:]
  first = next(batches.training_batches(loader, made, patches=sample).as_numpy_iterator())
  assert first["image"].shape == (6, *PATCH, 1) and first["label"].shape == (6, *PATCH)
  assert (first["label"][:3] > 0).any(axis=(1, 2)).all()


@pytest.mark.slow
def test_an_augmented_stream_of_patches_starts_anywhere(source, tmp_path):
  config = dataclasses.replace(STRONG, elastic_probability=0.0)
  loader, made, sample = stream_parts(source, config)
  whole = content(batches.training_batches(loader, made, num_steps=4, patches=sample))
  kept = cache.fill(loader, cache.Choice("ram", ""), tmp_path, "key")
  later = batches.training_batches(
      loader, made, start_step=1, num_steps=3, patches=sample, cache=kept, threads=3
  )
  assert content(later) == whole[1:]


def test_boxes_of_slices_in_their_frames(source):
  table = readers.slice_table(source, "train")
  hw = table.height[0], table.width[0]
  pad = patches.content_boxes(table, resizing.Resizing(SIZE, "pad"))
  assert pad.shape == (len(table), 4)
  assert pad[0].tolist() == [(SIZE[0] - hw[0]) // 2, (SIZE[1] - hw[1]) // 2, *hw]
  stretched = patches.content_boxes(table, resizing.Resizing(SIZE, "stretch"))
  assert stretched[0].tolist() == [0, 0, *SIZE]
  unknown = dataclasses.replace(table, height=table.height * 0, width=table.width * 0)
  assert patches.content_boxes(unknown, resizing.Resizing(SIZE, "fit"))[0].tolist() == [0, 0, *SIZE]
