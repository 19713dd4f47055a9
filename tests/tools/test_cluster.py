"""The examples for clusters: flags exist, shells parse, ssh starts one process per host."""

import os
import pathlib
import re
import subprocess

import pytest

from flexunet import train

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tools" / "cluster"
OF_TRAIN = re.compile(r"(?:^|[\s\"-])--([a-z_]+)")


@pytest.mark.parametrize("name", ["slurm.sbatch", "ssh.sh"])
def test_a_script_parses(name):
  subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml", "ssh.sh"])
def test_the_flags_of_the_trainer_exist(name):
  lines = [line for line in (FOLDER / name).read_text().splitlines()
           if not line.lstrip().startswith(("#SBATCH", "srun"))]  # fmt: skip
  found = set(OF_TRAIN.findall("\n".join(lines)))
  assert "resume" in found and found <= set(train._PROGRAM.values)


def test_ssh_starts_a_process_on_each_host_and_passes_a_failure_on(tmp_path):
  ssh, trainer = tmp_path / "ssh", tmp_path / "flexunet"
  ssh.write_text('#!/bin/bash\nexec bash -c "$2"\n')
  trainer.write_text('#!/bin/bash\nprintf "<%s>" "$@" >&2; echo >&2\n'
                     'case "$*" in *process_id=1*) exit 3;; esac\n')  # fmt: skip
  for program in (ssh, trainer):
    program.chmod(0o755)
  environment = {**os.environ, "SSH": str(ssh), "FLEXUNET": str(trainer), "PORT": "61999",
                 "TMPDIR": str(tmp_path)}  # fmt: skip
  done = subprocess.run(
      [str(FOLDER / "ssh.sh"), "n1 n2", "--run_dir=/a b"], env=environment, capture_output=True,
      text=True, check=False, timeout=60,
  )  # fmt: skip
  assert done.returncode == 3
  for number, host in enumerate(("n1", "n2")):
    assert (f"{host}: <train><--coordinator=n1:61999><--num_processes=2><--process_id={number}>"
            "<--run_dir=/a b><--resume>") in done.stderr  # fmt: skip
