"""From raw folders to TFRecords: the builders, splits by subject, and one folder per dataset.

TFDS finds the builders by name as soon as this package and TFDS are both imported, in any order:
`tfds build NAME --imports=flexunet.datasets`, `tfds.builder(NAME)`. Neither loads the other.
"""

import types

try:
  import wrapt
except ImportError:  # Readers of records do without it, and without TFDS, to which it serves.
  wrapt = None  # type: ignore[assignment]


class _Provider:
  """Gives TFDS the builders by their names; catalog and builders are imported when asked for."""

  def has_dataset(self, name: str) -> bool:
    """Returns whether this is one of our datasets."""
    return name in _catalog().NAMES

  def get_builder_cls(self, name: str) -> type:
    """Returns its builder class."""
    return _catalog().builder_class(name)


def _catalog() -> types.ModuleType:
  # Only who asks for a builder needs it, not who reads a built dataset.
  from flexunet.datasets import catalog

  return catalog


def _offer_builders(tfds: types.ModuleType) -> None:
  # Before the providers of TFDS itself, which would import all its own builders to look there.
  tfds.core.add_dataset_builder_provider(_Provider(), index=0)


if wrapt is not None:
  wrapt.when_imported("tensorflow_datasets")(_offer_builders)
