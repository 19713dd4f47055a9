"""Loaders and orders over a tiny dataset, and what the batches of a stream hold."""

from flexunet.pipelines import order, readers, resizing

SIZE = (24, 32)


def make_loader(source, split="train", **changes):
  options = {"resizing": resizing.Resizing(SIZE, "pad"), **changes}
  return readers.ExampleLoader(
    source, readers.slice_table(source, split), readers.ExampleSpec(**options)
  )


def make_order(loader, **changes):
  return order.EpochOrder(**{"num_records": loader.num_rows, "batch_size": 4, "seed": 7, **changes})


def content(dataset) -> list[bytes]:
  return [b"".join(batch[key].tobytes() for key in sorted(batch))
          for batch in dataset.as_numpy_iterator()]  # fmt: skip
