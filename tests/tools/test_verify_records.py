"""verify_records, on small built phantoms that are damaged."""

import functools
import json
import pathlib
import random
import re
import shutil

import forked
import numpy as np
import pytest

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, dataset_folders
from flexunet.datasets.builder import tfrecord
from flexunet.pipelines import dataset_source
from flexunet.tools import verify_records


@pytest.fixture
def copy(built_slices, tmp_path):
  """A copy of the built dataset, to be damaged; keeps the folders dataset/config/version."""
  return pathlib.Path(shutil.copytree(built_slices, tmp_path / "hippocampus_t1w/slices/1.0.0"))


def problems_of(folder: pathlib.Path) -> list[str]:
  return verify_records.verify(built_dataset.open_folder(folder)).problems


def shard_with(folder: pathlib.Path, records: int = 4):
  """Returns (path, rows) of the first train shard, which holds some records."""
  dataset = built_dataset.open_folder(folder)
  rows = [row for row in dataset.rows if row["split"] == "train"]
  rows = [row for row in rows if row["shard"] == rows[0]["shard"]]
  assert len(rows) >= records
  return folder / rows[0]["shard"], rows


def frame_of(data: bytes, row) -> bytes:
  start = int(row["offset"])
  return data[start : start + int(row["length"]) + tfrecord.FRAME_BYTES]


@pytest.mark.parametrize("fixture", ["built_slices", "built_volumes", "built_heads"])
def test_a_built_dataset_verifies(request, fixture):
  folder = request.getfixturevalue(fixture)
  result = verify_records.verify(built_dataset.open_folder(folder))
  assert result.problems == [] and result.records == len(built_dataset.open_folder(folder).rows)
  assert result.name.endswith("/1.0.0")


@pytest.mark.parametrize("where", ["payload", "checksum", "length"])
def test_a_flipped_bit_is_found_wherever_it_is(copy, where):
  path, rows = shard_with(copy)
  row = rows[2]
  place = {"payload": 12 + 40, "checksum": 12 + int(row["length"]), "length": 1}[where]
  data = bytearray(path.read_bytes())
  data[int(row["offset"]) + place] ^= 4
  path.write_bytes(data)
  [problem] = problems_of(copy)
  assert problem.startswith(f"{path.name}: record 2 ({row['key']})")


def test_a_shard_cut_at_a_record_boundary_is_found(copy):
  path, rows = shard_with(copy)
  path.write_bytes(path.read_bytes()[: int(rows[-2]["offset"])])
  assert problems_of(copy) == [
      f"{path.name}: record {row['record']} ({row['key']}) is missing." for row in rows[-2:]
  ]


def test_a_shard_cut_within_a_record_is_found(copy):
  path, rows = shard_with(copy)
  path.write_bytes(path.read_bytes()[:-5])
  [problem] = problems_of(copy)
  assert rows[-1]["key"] in problem and "the file ends within the record" in problem


def test_a_removed_record_is_found_and_named(copy):
  path, rows = shard_with(copy)
  data = path.read_bytes()
  path.write_bytes(data.replace(frame_of(data, rows[1]), b""))
  assert problems_of(copy) == [f"{path.name}: record 1 ({rows[1]['key']}) is missing."]


def test_a_duplicated_record_is_found_and_named(copy):
  path, rows = shard_with(copy)
  data = path.read_bytes()
  path.write_bytes(data + frame_of(data, rows[1]))
  [problem] = problems_of(copy)
  assert problem == (
      f"{path.name}: record {len(rows)}: is a second copy of record 1 ({rows[1]['key']})."
  )


def test_records_in_another_order_are_found(copy):
  path, rows = shard_with(copy)
  data = path.read_bytes()
  frames = [frame_of(data, row) for row in rows]
  path.write_bytes(b"".join([frames[1], frames[0], *frames[2:]]))
  [problem] = problems_of(copy)
  assert problem == f"{path.name}: record 0 onwards stand in another order than built."


def test_a_record_moved_to_another_shard_is_found(copy):
  dataset = built_dataset.open_folder(copy)
  path, rows = shard_with(copy)
  other = next(row for row in dataset.rows if row["split"] == "test")
  data = (copy / other["shard"]).read_bytes()
  path.write_bytes(path.read_bytes() + frame_of(data, other))
  problems = problems_of(copy)
  assert any(f"{path.name}: record {len(rows)}: belongs to no row" in line for line in problems)
  assert f"subject {other['subject']} stands in two splits: test, train." in problems


def test_a_missing_and_an_unknown_shard_are_found(copy):
  path, rows = shard_with(copy)
  path.rename(path.with_name("extra.tfrecord-00000-of-00001"))
  problems = problems_of(copy)
  assert f"{path.name}: the shard is missing, with its {len(rows)} records." in problems
  assert "extra.tfrecord-00000-of-00001: the build report knows no such shard." in problems


def test_a_table_that_tells_other_pixels_is_found(copy):
  dataset = built_dataset.open_folder(copy)
  table = copy / "records.csv"
  row = next(row for row in dataset.rows if int(row["pixels_hippocampus"]) > 0)
  lines = table.read_text().splitlines()
  [place] = [n for n, line in enumerate(lines) if f",{row['key']}," in line]
  count = row["pixels_hippocampus"]
  lines[place] = re.sub(rf",{count}$", f",{int(count) + 1}", lines[place])
  table.write_text("\n".join(lines) + "\n")
  problems = problems_of(copy)
  assert any(row["key"] in line and f"has {count} pixels of hippocampus" in line
             for line in problems)  # fmt: skip
  assert any(line.startswith("build_report.json: pixels of split") for line in problems)


def test_a_report_that_was_edited_is_found(copy):
  path = copy / "build_report.json"
  report = json.loads(path.read_text())
  report["shards"][0]["sha256"] = "0" * 64
  path.write_text(json.dumps(report))
  problems = problems_of(copy)
  assert any("fingerprint" in line for line in problems)
  assert any("sha256" in line for line in problems)


def any_problem(folder: pathlib.Path) -> bool:
  try:
    return bool(problems_of(folder))
  except InputError:
    return True


def places_of(value, path=()):
  """Yields (path, value) of everything in a tree of JSON."""
  yield path, value
  if isinstance(value, (dict, list)):
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
      yield from places_of(entry, (*path, key))


def edit_json(path: pathlib.Path, draw: random.Random) -> str:
  """Changes one value of a JSON file, or removes or adds one; returns what was done."""
  tree = json.loads(path.read_text())
  place, value = draw.choice([found for found in places_of(tree) if found[0]])
  *above, last = place
  holder = functools.reduce(lambda node, key: node[key], above, tree)
  kind = draw.choice(["change", "change", "remove", "null", "add"])
  if kind == "change" and isinstance(value, (int, float)):
    holder[last] = value + draw.choice([-1, 1, 0.5, 1000])
  elif kind == "change" and isinstance(value, str):
    holder[last] = value[:-1] + draw.choice("abcxyz0123") + "q"
  elif kind == "change":
    holder[last] = [value]
  elif kind == "remove":
    del holder[last]
  elif kind == "null":
    holder[last] = "none" if value is None else None
  elif isinstance(holder, dict):
    holder["added"] = 1
  else:
    holder.append(1)
  path.write_text(json.dumps(tree))
  return f"{kind} {place}"


def edit_table(path: pathlib.Path, draw: random.Random) -> str:
  """Changes one cell of records.csv, or its header, or removes, doubles or swaps lines."""
  rows = [line.split(",") for line in path.read_text().splitlines()]
  kind = draw.choice(["cell"] * 6 + ["header", "remove", "double", "swap"])
  number, column = draw.randrange(1, len(rows)), draw.randrange(len(rows[0]))
  if kind in ("cell", "header"):
    row = rows[0 if kind == "header" else number]
    row[column] = str(int(row[column]) + 1) if row[column].lstrip("-").isdigit() else "x"
  elif kind == "remove":
    del rows[number]
  elif kind == "double":
    rows.append(rows[number])
  else:
    rows[number - 1], rows[number] = rows[number], rows[number - 1]
  path.write_text("\n".join(map(",".join, rows)) + "\n")
  return f"{kind} row {number} column {column}"


EDITED = {"build_report.json": 40, "records.csv": 40, "checksums.json": 15, "features.json": 10,
          "dataset_info.json": 10, "croissant.json": 10}  # fmt: skip


@pytest.mark.parametrize("name", EDITED)
def test_no_random_edit_of_a_file_beside_the_shards_is_silent(copy, name):
  path, before = copy / name, (copy / name).read_bytes()
  silent = []
  for seed in range(EDITED[name]):
    draw = random.Random(seed)
    done = edit_table(path, draw) if name == "records.csv" else edit_json(path, draw)
    if not any_problem(copy):
      silent.append((seed, done))
    path.write_bytes(before)
  assert silent == []
  assert not any_problem(copy)


def test_what_the_records_show_is_found_also_where_the_checksums_are_made_again(copy):
  """Each entry is one that training reads or that the report is read for."""
  report_path, table = copy / "build_report.json", copy / "records.csv"
  report, lines = report_path.read_bytes(), table.read_text().splitlines()
  header = lines[0].split(",")
  silent = []
  for number, change in enumerate((
      lambda r: r["splits"]["train"]["subjects"].pop(),
      lambda r: r["splits"]["train"].update(num_foreground_records=1),
      lambda r: r["splits"]["test"]["pixels"].update(hippocampus=1),
      lambda r: r["splits"].pop("test"),
      lambda r: r["split_realised"].update(train=0.123),
      lambda r: r["label_scheme"][1].update(name="brain"),
      lambda r: r["shards"][0].update(bytes=1),
      lambda r: r["shards"][0].update(split="test"),
      lambda r: r["shards"].pop(),
      lambda r: r.update(dataset="other"),
      lambda r: r.update(config="other"),
      lambda r: r.update(version="2.0.0"),
      lambda r: r.update(form="built_volumes"),
      lambda r: r.update(file_format="array_record"),
      lambda r: r.update(fingerprint="0" * 64),
  )):
    edited = json.loads(report)
    change(edited)
    report_path.write_text(json.dumps(edited))
    built_dataset.write_checksums(copy)
    if not any_problem(copy):
      silent.append(number)
  report_path.write_bytes(report)
  for column in header:
    cells = lines[3].split(",")
    cell = cells[header.index(column)]
    cells[header.index(column)] = str(int(cell) + 1) if cell.isdigit() else "test"
    table.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    built_dataset.write_checksums(copy)
    if not any_problem(copy):
      silent.append(column)
  assert silent == []


@pytest.mark.parametrize("feature", ["volume", "fold", "label", "slice_index"])
def test_features_that_lack_one_are_lines_and_no_trace(copy, feature):
  features = json.loads((copy / "features.json").read_text())
  del features["featuresDict"]["features"][feature]
  (copy / "features.json").write_text(json.dumps(features))
  problems = problems_of(copy)
  assert problems[0] == "features.json: is not the file that was built (sha256 in checksums.json)."


@pytest.mark.parametrize("name", ["build_report.json", "records.csv", "features.json"])
def test_a_dataset_with_an_edited_file_is_not_opened_for_training(copy, name):
  dataset_source.open_dataset(None, copy)
  path = copy / name
  path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
  with pytest.raises(InputError, match=f"but {name} changed since"):
    dataset_source.open_dataset(None, copy)


def test_a_dataset_without_checksums_does_not_verify(copy):
  (copy / "checksums.json").unlink()
  [problem] = problems_of(copy)
  assert problem.startswith("checksums.json: is missing")
  dataset_source.open_dataset(None, copy)  # As datasets that were built elsewhere.


def test_the_checksums_hold_every_file_but_the_shards(copy):
  """A missing label list, or a file that the build did not write, is named."""
  listed = set(json.loads((copy / "checksums.json").read_text())["sha256"])
  others = {p.name for p in copy.iterdir() if "tfrecord" not in p.name} - {"checksums.json"}
  assert listed == others and {"label.labels.txt", "croissant.json"} <= listed
  (copy / "label.labels.txt").unlink()
  (copy / "splits2.json").write_text("{}")
  problems = problems_of(copy)
  assert "label.labels.txt: is missing (sha256 in checksums.json)." in problems
  assert "splits2.json: checksums.json knows no such file." in problems


def test_a_rewritten_shard_with_another_label_is_found(copy):
  """Every checksum of the container is right again, and so is the sha256 in the report."""
  dataset = built_dataset.open_folder(copy)
  path, rows = shard_with(copy)
  data = path.read_bytes()
  row = next(row for row in rows if int(row["pixels_hippocampus"]) > 0)
  start = int(row["offset"]) + tfrecord.HEADER_BYTES
  example = dataset.decode(data[start : start + int(row["length"])])
  example["label"] = np.zeros_like(example["label"])
  payload = dataset.info.features.serialize_example(example)
  frame = tfrecord.frame(payload, tfrecord.masked_crc(payload))
  path.write_bytes(data.replace(frame_of(data, row), frame))
  report_path = copy / "build_report.json"
  report = json.loads(report_path.read_text())
  [shard] = [shard for shard in report["shards"] if shard["file"] == path.name]
  shard["sha256"] = files.sha256_of(path)
  report_path.write_text(json.dumps(report))
  assert any(row["key"] in line and "pixels of" in line for line in problems_of(copy))


def test_a_folder_without_a_dataset_is_refused(tmp_path):
  with pytest.raises(InputError, match="holds no built dataset"):
    dataset_folders.find(tmp_path)
  with pytest.raises(InputError, match="no such folder"):
    dataset_folders.find(tmp_path / "none")


def test_a_damaged_report_is_one_line(copy):
  (copy / "build_report.json").write_text("{")
  with pytest.raises(InputError, match="one of them is damaged"):
    dataset_folders.find(copy)


@pytest.mark.slow
def test_the_verify_command_ends_with_0_or_with_1_and_the_record(copy, tmp_path):
  done = forked.command("verify", tmp_path)
  assert done.returncode == 0 and done.stdout.startswith("hippocampus_t1w/slices/1.0.0: ok, ")
  path, rows = shard_with(copy)
  path.write_bytes(path.read_bytes()[: int(rows[-1]["offset"])])
  done = forked.command("verify", copy)
  assert done.returncode == 1
  assert f"{path.name}: record {rows[-1]['record']} ({rows[-1]['key']}) is missing." in done.stderr
