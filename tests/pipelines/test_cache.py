"""The cache in the device's memory: the same examples, and when it is chosen."""

import numpy as np
import pytest
import tensorflow as tf
from batch_samples import content, make_loader, make_order

from flexunet.core import machine
from flexunet.core.errors import InputError
from flexunet.pipelines import batches, cache, resizing

MIB = 2**20


def batches_of(loader, cache, steps=9):
  """Returns the batches of the training stream, gathered by row in a function as a step is."""
  order = make_order(loader)
  for entry in batches.step_entries(order, batches.Host(), 0, steps):
    image, label = cache(entry["row"])
    image = resizing.to_channels(image, loader.spec.image_channels)
    yield {
        "image": image.numpy(), "label": label.numpy(), "record": entry["row"].numpy(),
        "valid": np.ones(len(label), bool),
    }  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "options",
    # 23 x 31 pixels, image and label: 1426 bytes, which are no whole number of words.
    [{}, {"image_channels": 3}, {"resizing": resizing.Resizing((23, 31), "pad")}],
)
def test_it_gives_the_batches_of_every_other_cache(source, options, compiled):
  loader = make_loader(source, **options)
  wanted = content(batches.training_batches(loader, make_order(loader), num_steps=9))
  cached = cache.fill_on_device(loader, cache.device_name())
  gather = tf.function(cached.gather, jit_compile=compiled)
  found = [b"".join(batch[key].tobytes() for key in sorted(batch))
           for batch in batches_of(loader, gather)]  # fmt: skip
  assert found == wanted


def test_a_row_is_filled_up_to_whole_words():
  # 3 x 5 pixels of one channel and their label: 30 bytes, in 4 words of 8.
  rows = np.arange(2 * 32, dtype=np.uint8).reshape(2, 32)
  cached = cache.DeviceCache(tf.constant(rows.view(np.int64)), (3, 5, 1))
  image, label = cached.gather(tf.constant([1, 0, 1], tf.int64))
  np.testing.assert_array_equal(image[1], np.arange(15).reshape(3, 5, 1))
  np.testing.assert_array_equal(label[0], np.arange(32 + 15, 32 + 30).reshape(3, 5))
  assert image.shape == (3, 3, 5, 1) and label.shape == (3, 3, 5)


def test_it_is_chosen_where_a_gpu_has_room():
  gpu = cache.Room(400 * MIB, is_gpu=True)
  # A quarter of 400 MiB.
  choice, why = cache.choose_on_device("auto", 100 * MIB, gpu)
  assert (choice.mode, why) == ("device", "") and "25% of the 400 MiB" in choice.reason
  choice, why = cache.choose_on_device("auto", 101 * MIB, gpu)
  assert choice is None and "101 MiB of decoded training slices do not fit into 25%" in why


@pytest.mark.parametrize(
    ("room", "why"),
    [
        (cache.Room(400 * MIB), ""),  # No GPU.
        (cache.Room(None, is_gpu=True), "cannot be measured"),
        (cache.Room(400 * MIB, "several devices", True), "several devices"),
    ],
)
def test_it_is_not_chosen_by_itself_elsewhere(room, why):
  choice, reason = cache.choose_on_device("auto", MIB, room)
  assert choice is None and why in reason and bool(why) == bool(reason)
  assert cache.choose_on_device("ram", MIB, room) == (None, "")


def test_asked_for_it_must_fit():
  room = cache.Room(100 * MIB)
  assert cache.choose_on_device("device", 80 * MIB, room)[0] == cache.Choice("device", "given")
  with pytest.raises(InputError, match="needs 81 MiB .* into 80% of the 100 MiB that the network"):
    cache.choose_on_device("device", 81 * MIB, room)
  with pytest.raises(InputError, match="--cache=device cannot be: several devices"):
    cache.choose_on_device("device", MIB, cache.Room(None, "several devices"))


def test_it_needs_main_memory_while_it_is_filled(source, monkeypatch):
  monkeypatch.setattr(machine, "free_main_memory", lambda: 100)
  with pytest.raises(InputError, match="Use --cache=disk"):
    cache.fill_on_device(make_loader(source), cache.device_name())
