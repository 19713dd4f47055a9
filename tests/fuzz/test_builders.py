"""Raw folders with one damaged, missing or misplaced file, for each builder."""

import gzip
import pathlib
import re
import shutil

import fuzz_damage
import fuzz_inputs
import fuzz_judge
import pytest
from fuzz_judge import Seen

from flexunet.datasets import built_dataset

pytestmark = pytest.mark.fuzz

# Bytes of these may change into others that are as good.
_NO_CHECKSUM = (".nii", ".hdr", ".img", ".jpg", ".csv", ".xlsx")
_REASON = "uncompressed scans, JPEG and CSV hold no checksum; what cannot be is refused"


def removed(path, rng):
  path.unlink()


def renamed(path, rng):
  path.rename(path.with_name(f"{path.name}.bak"))


def renamed_within(path, rng):
  path.rename(path.with_name(f"other {path.name}"))


def copied(path, rng):
  shutil.copyfile(path, path.with_name(f"Copy of {path.name}"))


def upper_case(path, rng):
  path.rename(path.with_name(path.name.upper()))


def a_folder(path, rng):
  path.unlink()
  path.mkdir()


def dead_link(path, rng):
  path.unlink()
  path.symlink_to("nowhere")


def link_to_itself(path, rng):
  path.unlink()
  path.symlink_to(path.name)


def compressed(path, rng):
  path.write_bytes(gzip.compress(path.read_bytes()))


def compressed_beside(path, rng):
  path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def in_a_subfolder(path, rng):
  (path.parent / "sub").mkdir()
  path.rename(path.parent / "sub" / path.name)


def without_rights(path, rng):
  path.rename(path.with_name("." + path.name))  # Hidden: as good as gone, whoever runs this.


FILE_DAMAGES = (
    removed, renamed, renamed_within, copied, upper_case, a_folder, dead_link, link_to_itself,
    compressed, compressed_beside, in_a_subfolder, without_rights,
)  # fmt: skip


def attacks(count: int, rng):
  """Yields (name, function of (path, rng), whether it changes bytes alone)."""
  names = list(fuzz_damage.BYTES)
  for number in range(count):
    if number % 2:
      damage = FILE_DAMAGES[(number // 2) % len(FILE_DAMAGES)]
      yield damage.__name__, damage, False
      continue
    name = names[(number // 2) % len(names)]

    def change(path, rng, name=name):
      path.write_bytes(fuzz_damage.BYTES[name](path.read_bytes(), rng))

    yield name, change, True


def content(dataset: str, raw: pathlib.Path, out: pathlib.Path) -> Seen:
  """Builds; the result is what stands in the records, beside it all that the user gets to read."""
  folder, said = fuzz_inputs.build_and_listen(dataset, raw, out)
  report = built_dataset.read_report(folder)
  return Seen([(shard["file"], shard["sha256"]) for shard in report["shards"]], said)


@pytest.mark.parametrize("dataset", fuzz_inputs.BUILDERS)
def test_builders(tmp_path, dataset):
  raw = fuzz_inputs.write_raw(dataset, tmp_path / "raw")
  reference = content(dataset, raw, tmp_path / "whole")
  files = sorted(path for path in raw.rglob("*") if path.is_file())
  category = fuzz_judge.category(f"build {dataset}", _REASON)
  rng = fuzz_judge.generator(category.name)
  for number, (name, damage, of_bytes) in enumerate(attacks(fuzz_judge.trials(120), rng)):
    copy, out = tmp_path / f"raw{number}", tmp_path / f"out{number}"
    shutil.copytree(raw, copy)
    path = copy / files[rng.integers(len(files))].relative_to(raw)
    suffix = path.suffix.lower()
    damage(path, rng)
    category.judge(
        f"{path.relative_to(copy)}: {name}",
        lambda copy=copy, out=out: new_lines(content(dataset, copy, out), reference),
        lambda result: result == reference.result,
        names_of(path),
        checked=not (of_bytes and suffix in _NO_CHECKSUM),
        lines=True,
    )
    shutil.rmtree(copy)
    shutil.rmtree(out, ignore_errors=True)
  category.check()


def names_of(path: pathlib.Path) -> list[str]:
  """Returns names of a file, and of the scan whose mask it is: either leads the user to it."""
  counterpart = re.sub(r"(_HGE_Seg|_label|_Hipp_Labels)", "", path.stem)
  subject = re.match(r"[A-Z]+_?\d+", counterpart)
  names = [path.name, path.name.upper(), path.stem, f"{path.parent.name}/{counterpart}."]
  return [*names, subject[0]] if subject else names


def new_lines(seen: Seen, reference: Seen) -> Seen:
  """Returns it without the lines that the whole folder gives as well."""
  return Seen(seen.result, [line for line in seen.said if line not in reference.said])
