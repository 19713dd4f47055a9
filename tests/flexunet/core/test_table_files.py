"""Tables are read in one place: whatever a CSV file holds, a bad one ends in one line."""

import pytest
import run_samples

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import examples
from flexunet.pipelines import dataset_source, record_table
from flexunet.reporting import report


def test_rows_come_by_the_names_of_the_first_line(tmp_path):
  (tmp_path / "a.csv").write_text('name,note\nx,"a, b"\n\ny,\n')
  assert files.read_table(tmp_path / "a.csv", ["name"]) == [
      {"name": "x", "note": "a, b"}, {"name": "y", "note": ""}]  # fmt: skip


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"split,fold\ntrain,\xff\n", "must be readable CSV: 'utf-8' codec"),
        (b"split,fold\ntrain,1,2\n", "must have 2 cells in each row; line 2 has 3"),
        (b"split,fold\ntrain\n", "must have 2 cells in each row; line 2 has 1"),
        (b'split,fold\n"train,1\n', "must be readable CSV"),
        (b"splat,fold\ntrain,1\n", "must have the column 'split'"),
        (b"", "must have the column 'split'"),
        (b"split,fold\ntrain," + b"1" * 200_000, "field larger than field limit"),
    ],
    ids=["no UTF-8", "a cell more", "a cell less", "an open quote", "no column", "empty", "huge"],
)
def test_a_bad_table_is_one_line_that_names_it(tmp_path, data, reason):
  (tmp_path / "bad.csv").write_bytes(data)
  with pytest.raises(InputError) as caught:
    files.read_table(tmp_path / "bad.csv", ["split"])
  message = str(caught.value)
  assert reason in message and "bad.csv" in message and "\n" not in message


@pytest.mark.parametrize("data", [b"split\xff", b"split,shard,offset,length\ntrain,a,0,x\n", b""])
def test_a_bad_table_of_records_is_one_line(tmp_path, data):
  (tmp_path / "records.csv").write_bytes(data)
  with pytest.raises(InputError, match=r"records\.csv"):
    record_table.read(tmp_path / "records.csv", "train", [])


def test_a_bad_table_of_records_is_one_line_where_folds_are_checked(blob_data, monkeypatch):
  listing = blob_data / "records.csv"
  whole = listing.read_bytes()
  try:
    listing.write_bytes(whole.replace(b"fold", b"fald"))
    with pytest.raises(InputError, match="must have the column 'fold'"):
      dataset_source.check_folder(None, blob_data, fold=0)
  finally:
    listing.write_bytes(whole)


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("history.csv", b"epoch,loss\n1,0.5a\n", r"history\.csv must hold numbers. Got: '0.5a'"),
        ("history.csv", b"\xff", r"history\.csv must be readable CSV"),
        ("cases.csv", b"split,subject,volume,class,dice\ntest,a,b,c,x\n", "must hold numbers"),
        ("cases.csv", b"a\n", "must have the column 'split'"),
        ("examples_test.npz", b"no archive", r"examples_test\.npz must be as the evaluation"),
    ],
)  # fmt: skip
def test_a_report_of_damaged_results_is_one_line(tmp_path, name, data, reason):
  run = run_samples.evaluated_run(tmp_path / "run")
  [path] = run.path.rglob(name)
  path.write_bytes(data)
  with pytest.raises(InputError, match=reason) as caught:
    report.write_report(run)
  assert "\n" not in str(caught.value)


def test_edited_figures_are_one_line(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  text = run.metrics_json.read_text()
  run.metrics_json.write_text(text.replace("grey_matter", "gray_matter"))
  with pytest.raises(InputError, match="one of them is not"):
    report.write_report(run)


def test_a_flipped_bit_in_an_example_is_found(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  path = examples.path_of(run, "test")
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"examples_test\.npz"):
    examples.read(path)
