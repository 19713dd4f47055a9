"""From raw folders to TFRecords: the builders, splits by subject, and one folder per dataset.

TFDS finds the builders by name as soon as this package and TFDS are both imported, in any order:
`tfds build NAME --imports=flexunet.datasets`, `tfds.builder(NAME)`. Neither loads the other.
"""

import importlib.abc
import importlib.util
import sys

_TFDS = "tensorflow_datasets"


def _offer_builders(tfds) -> None:
  # Here, because the help of a program needs this package without the catalog.
  from flexunet.datasets import catalog

  # Before the providers of TFDS itself, which would import all its own builders to look there.
  tfds.core.add_dataset_builder_provider(catalog.Provider(), index=0)


class _WaitsForTfds(importlib.abc.MetaPathFinder):
  """Offers the builders at the end of the first import of TFDS."""

  def find_spec(self, fullname, path=None, target=None):
    if fullname != _TFDS:
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(fullname)
    if spec is not None and spec.loader is not None:
      execute = spec.loader.exec_module

      def execute_and_offer(module):
        execute(module)
        _offer_builders(module)

      spec.loader.exec_module = execute_and_offer  # type: ignore[method-assign]
    return spec


if _TFDS in sys.modules:
  _offer_builders(sys.modules[_TFDS])
else:
  sys.meta_path.insert(0, _WaitsForTfds())
