"""Sets, systems and minutes are read as the user names them, and told apart by their files."""

import json
import pathlib

import pytest

from flexunet.core.errors import InputError
from flexunet.tools.benchmarks.quality import jobs


def test_options_of_a_system_may_hold_commas():
  found = jobs.parse_systems(
      "flexunet,flexunet:--image_size=96,96 --batch_size=4,small=nnunet_2d:--memory_gb=1,monai_unet"
  )
  assert [one.name for one in found] == [
      "flexunet", "flexunet:--image_size=96,96 --batch_size=4", "small", "monai_unet",
  ]  # fmt: skip
  assert found[1].options == ("--image_size=96,96", "--batch_size=4")
  assert found[2].options == ("--configuration=2d", "--memory_gb=1")
  assert [one.program and one.program.name for one in found] == [
      None, None, "nnunet_peer.py", "monai_peer.py",
  ]  # fmt: skip


def test_every_system_has_its_program_beside_the_bench():
  for name in jobs.SYSTEMS:
    (system,) = jobs.parse_systems(name)
    assert system.program is None or (system.program.is_file() and system.needs_peers_env)


def test_a_program_of_the_users_needs_no_environment_of_peers(tmp_path):
  (tmp_path / "mine.py").write_text("")
  (system,) = jobs.parse_systems(f"program:{tmp_path}/mine.py --fast")
  assert (system.name, system.options) == ("mine", ("--fast",))
  assert not system.needs_peers_env


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flexunt", "Did you mean 'flexunet'"),
        ("flexunet,flexunet", "each once"),
        ("", "must name systems"),
        ("program:nowhere.py", "must name a Python file"),
        ("flexunet:--run='a", "must be words"),
    ],
)
def test_wrong_systems_are_refused_in_one_line(text, message):
  with pytest.raises(InputError, match=message):
    jobs.parse_systems(text)


def test_sets_are_named_in_words_or_in_a_file(tmp_path):
  (relative,) = jobs.parse_sets("hip=data:x")
  assert pathlib.Path(relative.data_dir) == pathlib.Path("data").absolute()
  (one, two) = jobs.parse_sets("hip=/data:hippocampus_t1w/slices,own=/data/own/1.0.0")
  assert (one.name, one.data_dir, one.dataset) == ("hip", "/data", "hippocampus_t1w/slices")
  assert (two.data_dir, two.dataset) == ("/data/own/1.0.0", None)
  listed = tmp_path / "sets.json"
  listed.write_text(json.dumps({
      "hip": "data:hippocampus_t1w", "own": {"data_dir": "/own", "title": "Our own"},
  }))  # fmt: skip
  (one, two) = jobs.parse_sets(str(listed))
  assert pathlib.Path(one.data_dir) == tmp_path / "data" and one.title == "hip"
  assert (two.data_dir, two.dataset, two.title) == ("/own", None, "Our own")


def test_other_planes_of_a_set_are_named_in_its_file(tmp_path):
  listed = tmp_path / "sets.json"
  place = {"data_dir": "data", "dataset": "hip/slices", "planes": ["data:hip/axial", "/own/1.0.0"]}
  listed.write_text(json.dumps({"hip": place}))
  (one,) = jobs.parse_sets(str(listed))
  assert one.planes == (("hip/axial", str(tmp_path / "data")), (None, "/own/1.0.0"))
  systems = jobs.parse_systems("flexunet,flexunet_folds,both=flexunet_planes:--num_layers=4")
  assert [system.ensemble for system in systems] == ["", jobs.FOLDS, jobs.PLANES]
  alone, folds, planes = (job.settings("a", 2) for job in jobs.all_jobs([one], systems, [1.0], [1]))
  assert not {"ensemble", "planes"} & set(alone) and "planes" not in folds
  assert planes["planes"] == ["hip/axial", None] and planes["options"] == ["--num_layers=4"]
  (other,) = jobs.parse_sets("hip=data:hip/slices")
  with pytest.raises(InputError, match='--systems=flexunet_planes needs .*"planes".* none of hip'):
    jobs.all_jobs([other], systems, [1.0], [1])
  listed.write_text(json.dumps({"hip": {**place, "planes": "data:hip/axial"}}))
  with pytest.raises(InputError, match="A set must be"):
    jobs.parse_sets(str(listed))


@pytest.mark.parametrize("text", ["", "hip", "a=x:y,a=x:z", "a/b=x:y"])
def test_wrong_sets_are_refused(text):
  with pytest.raises(InputError):
    jobs.parse_sets(text)


def test_minutes_rise_and_may_be_fractions():
  assert jobs.parse_minutes(["5", "0.1", "5"]) == [0.1, 5.0]
  for wrong in (["0"], ["-1"], ["a"], ["inf"], []):
    with pytest.raises(InputError, match="--minutes"):
      jobs.parse_minutes(wrong)


def test_files_of_systems_differ_where_their_flags_do():
  (data,) = jobs.parse_sets("hip=/data:x")
  systems = jobs.parse_systems(
      "flexunet,flexunet:--a=1,flexunet:--a-1,nnunet_2d,nnunet-2d=nnunet_2d"
  )
  planned = jobs.all_jobs([data], systems, [0.5, 20.0], [1, 2])
  keys = [job.key for job in planned]
  assert len(set(keys)) == len(keys) == 20
  assert keys[0] == "hip__flexunet__0.5min__seed1"
  assert [job.minutes for job in planned] == [0.5] * 10 + [20.0] * 10


def test_the_programs_of_the_peers_import_nothing_of_ours():
  found = sorted(pathlib.Path(jobs.__file__).parent.glob("*peer*.py"))
  assert [path.name for path in found] == ["monai_peer.py", "nnunet_peer.py", "peer_task.py"]
  for path in found:
    lines = path.read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
    assert imports and not any("flexunet" in line for line in imports)
