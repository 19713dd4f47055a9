"""Records and reports call persons by codes or pseudonyms; the key stays with the source."""

import json
import pathlib
import re

import build_samples
import numpy as np
import pytest
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset
from flexunet.datasets.builder import build_tool, subject_names
from flexunet.datasets.builder.raw_folder import KEY_NAME, Case, Findings
from flexunet.datasets.builder.subject_names import NameOptions, SubjectNames
from flexunet.tools import verify_records

PEOPLE = ["Mueller_Hans_1954", "Schmidt_Anna", "Duval Jean", "Öztürk_A", "Rossi-Maria", "Kim_J_77"]


def findings_of(root: pathlib.Path, subjects: list[str]) -> Findings:
  found = Findings(root)
  for subject in subjects:
    image = root / "images" / f"{subject}.png"
    found.add(Case(key=subject, subject=subject, volume=subject, files={"image": image}))
  return found


def names_of(root: pathlib.Path, subjects: list[str], **given) -> SubjectNames:
  published = given.pop("published", "")
  return SubjectNames(findings_of(root, subjects), NameOptions(**given), published)


@pytest.mark.parametrize(
    "subjects",
    [
        ["hippocampus_001", "hippocampus_003", "hippocampus_367"],
        ["sub-01", "sub-02"],
        ["sub-01"],
        ["case_0003", "case_0004"],
        ["049", "130"],
        ["GU012", "GU017", "NYU003", "NYU004"],
        ["Patient-1", "Patient-2"],
        ["IXI002-Guys-0828", "IXI012-Guys-1211"],
    ],
)
def test_names_whose_letters_are_shared_are_codes(tmp_path, subjects):
  names = names_of(tmp_path, subjects)
  assert names.pseudonyms == {} and not names.uses_key
  assert [names.subject(subject) for subject in subjects] == subjects


@pytest.mark.parametrize(
    "subject",
    [*PEOPLE, "19540312", "scan_1954-03-12", "12031954", "a1b2c3", "Mueller_12345"],
)
def test_any_other_name_becomes_a_pseudonym(tmp_path, subject):
  codes = [f"case_{number:03d}" for number in range(40)]
  names = names_of(tmp_path, [*codes, subject])
  assert list(names.pseudonyms) == [subject]
  assert re.fullmatch(r"subject_[0-9a-f]{12}", names.subject(subject))


def test_two_of_one_family_among_many_are_no_code(tmp_path):
  codes = [f"case_{number:03d}" for number in range(60)]
  names = names_of(tmp_path, [*codes, "Mueller_1", "Mueller_2"])
  assert list(names.pseudonyms) == ["Mueller_1", "Mueller_2"]


def test_a_published_name_is_kept_whatever_its_letters(tmp_path):
  assert names_of(tmp_path, ["HFH_017"], published=r"HFH_\d+").pseudonyms == {}
  assert names_of(tmp_path, ["HFH_017"]).pseudonyms
  assert names_of(tmp_path, ["HFH_017"], subject_names="keep").pseudonyms == {}
  hidden = names_of(tmp_path, ["HFH_017"], published=r"HFH_\d+", subject_names="pseudonym")
  assert list(hidden.pseudonyms) == ["HFH_017"]


def test_names_of_scans_follow_their_subject_and_keep_what_is_a_code(tmp_path):
  found = Findings(tmp_path)
  scans = [("Meier_Eva", "Meier_Eva_T1"), ("Meier_Eva", "Meier_Eva_DrKuhn"), ("Abt_Uwe", "x17"),
           ("sub-01", "sub-01_ses-2_T1w"), ("sub-01", "sub-01_Meier")]  # fmt: skip
  for subject, scan in scans:
    found.add(Case(key=scan, subject=subject, volume=scan, files={"image": tmp_path / scan}))
  names = SubjectNames(found, NameOptions())
  written = [names.written(case) for case in found.cases]
  eva, uwe = names.subject("Meier_Eva"), names.subject("Abt_Uwe")
  assert [case.subject for case in written] == [eva, eva, uwe, "sub-01", "sub-01"]
  assert written[0].key == written[0].volume == f"{eva}_T1"
  assert re.fullmatch(eva + r"_[0-9a-f]{6}", written[1].key)
  assert re.fullmatch(uwe + r"_[0-9a-f]{6}", written[2].key)
  assert written[3].key == "sub-01_ses-2_T1w"
  assert re.fullmatch(r"sub-01_[0-9a-f]{6}", written[4].key)
  assert len({case.key for case in written}) == 5


def test_texts_for_the_report_name_no_person(tmp_path):
  names = names_of(tmp_path, PEOPLE)
  line = (f"{tmp_path}/images/Mueller_Hans_1954.png: faint. Subject Schmidt_Anna, slice"
          " Kim_J_77_3, volume rossi-maria: odd.")  # fmt: skip
  shown = names.text(line)
  assert str(tmp_path) not in shown and shown.startswith("file_0001.png: faint.")
  for person in ("Mueller", "Schmidt", "Kim", "rossi", "Hans", "Anna"):
    assert person.lower() not in shown.lower()
  assert names.subject("Schmidt_Anna") in shown


def write_pairs(root: pathlib.Path, stems: list[str]) -> pathlib.Path:
  draw = np.random.default_rng(0)
  for stem in stems:
    image = draw.integers(20, 250, (24, 20), dtype=np.uint8)
    for folder, pixels in (("images", image), ("masks", np.where(image > 150, 255, 0))):
      (root / folder).mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{stem}.png")
  return root


@pytest.fixture
def raw(tmp_path):
  root = write_pairs(tmp_path / "raw", PEOPLE)
  (root / "Letter of Mrs Schmidt.Hoyer").write_text("private")
  (root / "Mueller").mkdir()
  (root / "Mueller" / "findings.pdf").write_text("private")
  return root


def build(raw: pathlib.Path, out: pathlib.Path, **given) -> pathlib.Path:
  return build_tool.build_dataset("image_mask", raw, out, num_workers=given.pop("workers", 1),
                                  **given)  # fmt: skip


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


WORDS = ["Mueller", "Hans", "1954", "Schmidt", "Anna", "Duval", "Jean", "Öztürk", "Rossi", "Kim_J",
         "Hoyer", "Letter"]  # fmt: skip


def _holds(content: bytes, word: str) -> bool:
  """Returns whether a word stands there: a hash or a duration may hold the digits of a year."""
  if not word.isdigit():
    return word.encode() in content
  return re.search(rb"(?<![0-9a-f.])" + word.encode() + rb"(?![0-9a-f])", content) is not None


def test_a_build_holds_no_name_and_the_key_file_holds_them_all(raw, tmp_path):
  folder = build(raw, tmp_path / "data")
  for path in folder.rglob("*"):
    content = path.read_bytes()
    assert not [word for word in WORDS if _holds(content, word)], path.name
  dataset = built_dataset.open_folder(folder)
  subjects = {row["subject"] for row in dataset.rows}
  assert len(subjects) == 6 and all(re.fullmatch(r"subject_[0-9a-f]{12}", s) for s in subjects)
  assert all(row["key"].startswith(row["subject"]) for row in dataset.rows)
  for row, record in dataset.records():
    assert (record["subject"], record["volume"]) == (row["subject"], row["volume"])
  key_path = raw / KEY_NAME
  assert key_path.stat().st_mode & 0o777 == 0o600
  key = json.loads(key_path.read_text())
  assert {key["subjects"][subject] for subject in subjects} == set(PEOPLE)
  left_out = dataset.report["left_out"]
  assert [entry["file"] for entry in left_out] == ["file_0001", "file_0002.pdf"]
  [numbered] = key["files"].values()
  assert numbered == {
      "file_0001": "Letter of Mrs Schmidt.Hoyer", "file_0002.pdf": "Mueller/findings.pdf"
  }
  assert dataset.report["subject_names"] == {"asked": "auto", "pseudonyms": 6}
  assert verify_records.verify(dataset).problems == []
  assert [path.name for path in raw.iterdir() if path.name.startswith(".")] == []


def test_the_same_key_gives_the_same_bytes_whoever_builds_and_another_key_others(raw, tmp_path):
  first = contents(build(raw, tmp_path / "a"))
  assert contents(build(raw, tmp_path / "b", workers=3)) == first
  moved = tmp_path / "safe" / "key.json"
  moved.parent.mkdir()
  (raw / KEY_NAME).rename(moved)
  assert contents(build(raw, tmp_path / "c", key_file=moved)) == first
  assert not (raw / KEY_NAME).exists()
  others = build(raw, tmp_path / "d")
  assert not {row["subject"] for row in built_dataset.open_folder(others).rows} & {
      text.decode() for text in re.findall(rb"subject_[0-9a-f]{12}", first["records.csv"])
  }


def test_pseudonyms_change_no_split(raw, tmp_path):
  """Splits are decided by the names of the raw folder, whatever the key."""
  kept = built_dataset.open_folder(build(raw, tmp_path / "kept", subject_names="keep"))
  made = built_dataset.open_folder(build(raw, tmp_path / "made"))
  raw_of = json.loads((raw / KEY_NAME).read_text())["subjects"]
  expected = {(row["subject"], row["split"], row["fold"]) for row in kept.rows}
  assert {(raw_of[r["subject"]], r["split"], r["fold"]) for r in made.rows} == expected
  assert {entry["file"] for entry in kept.report["left_out"]} == {
      "Letter of Mrs Schmidt.Hoyer", "Mueller/findings.pdf"
  }


def test_a_later_build_with_more_subjects_keeps_the_pseudonyms(raw, tmp_path):
  before = {row["subject"] for row in built_dataset.open_folder(build(raw, tmp_path / "a")).rows}
  write_pairs(raw, ["Novak_Petr"])
  after = {row["subject"] for row in built_dataset.open_folder(build(raw, tmp_path / "b")).rows}
  assert before < after and len(after) == 7
  key = json.loads((raw / KEY_NAME).read_text())
  assert set(key["subjects"].values()) == {*PEOPLE, "Novak_Petr"}


def test_a_key_inside_the_data_dir_is_refused_and_nothing_is_written(raw, tmp_path):
  for out, key in ((tmp_path / "data", tmp_path / "data" / "key.json"), (raw.parent, None)):
    with pytest.raises(InputError, match="--key_file must lie outside of --data_dir"):
      build(raw, out, key_file=key)
  assert not (tmp_path / "data").exists() and not (raw / KEY_NAME).exists()


def test_a_raw_folder_that_cannot_be_written_asks_for_a_key_file(raw, tmp_path, monkeypatch):
  write = files.write_bytes

  def refuse(path, data, mode=0o644):
    if path.parent == raw:
      raise PermissionError(13, "Permission denied", str(path))
    write(path, data, mode)

  monkeypatch.setattr(files, "write_bytes", refuse)
  with pytest.raises(InputError, match=r"cannot be written .*--key_file=PATH"):
    build(raw, tmp_path / "data")
  assert build(raw, tmp_path / "data", key_file=tmp_path / "key.json").is_dir()
  assert build(raw, tmp_path / "other", subject_names="keep").is_dir()


@pytest.mark.parametrize("content", ["", "{}", '{"salt": "00", "subjects": {}}', "[" * 10000])
def test_a_damaged_key_is_one_line_and_stays(raw, tmp_path, content):
  (raw / KEY_NAME).write_text(content)
  with pytest.raises(InputError, match="must be the key file that a build wrote"):
    build(raw, tmp_path / "data")
  assert (raw / KEY_NAME).read_text() == content


def test_a_dry_run_says_which_names_become_pseudonyms_and_writes_no_key(raw, tmp_path):
  names = names_of(raw, PEOPLE)
  lines = subject_names.lines(names, sorted(PEOPLE))
  assert lines[0].startswith("6 of 6 subjects become pseudonyms by a new key in ")
  assert "  Mueller_Hans_1954 -> subject_<12 hex digits>" in lines
  assert not (raw / KEY_NAME).exists()
  build(raw, tmp_path / "data")
  again = subject_names.lines(names_of(raw, PEOPLE), sorted(PEOPLE))
  assert re.search(r"Mueller_Hans_1954 -> subject_[0-9a-f]{12}$", "\n".join(again), re.MULTILINE)


@pytest.mark.parametrize("dataset", build_samples.SIZES)
def test_published_layouts_keep_their_names_and_need_no_key(dataset, tmp_path):
  raw = build_samples.raw_folder(dataset, tmp_path / "raw")
  options = {"palette": "hippocampus_t1w"} if dataset == "image_mask" else {}
  builder = build_tool.maker(
      dataset.partition("/")[0], data_dir=tmp_path / "data", options=options
  )()
  findings = builder.inspect_source(raw)
  names = builder.name_subjects(findings)
  assert not names.uses_key
  for case in findings.cases:
    assert names.written(case) == case
