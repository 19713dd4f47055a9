"""How a program ends on bad input, and on a fault of its own."""

import subprocess
import sys

import pytest

from flexunet.core import command_line, flags
from flexunet.core.errors import InputError, from_problems, unknown_name

PROGRAM = """
from flexunet.core import command_line, flags
from flexunet.core.errors import InputError
program = flags.Program("Does nothing.")
program.integer("batch_size", 1, "Help that teaches.")
def main(argv):
  {body}
command_line.run(main, program)
"""


def run(body, *arguments):
  return subprocess.run(
      [sys.executable, "-c", PROGRAM.format(body=body), *arguments],
      capture_output=True, text=True, check=False,
  )


def test_bad_input_is_one_line_on_standard_error_and_exit_code_1():
  result = run('raise InputError("scan.nii: is no scan.")')
  assert result.returncode == 1
  assert result.stderr == "error: scan.nii: is no scan.\n"


def test_a_fault_of_the_program_keeps_its_trace():
  result = run("raise KeyError('x')")
  assert result.returncode == 1 and "Traceback" in result.stderr


def test_an_unknown_flag_gets_its_nearest_spelling():
  result = run("print('ran')", "--batch_siz=3")
  assert result.returncode == 1
  assert "batch_size" in result.stderr and "Traceback" not in result.stderr
  assert result.stdout == ""


def test_only_bad_input_is_caught(capsys):
  def main(argv):
    raise ValueError("a fault")

  with pytest.raises(ValueError, match="a fault"):
    command_line.run(main, flags.Program("Fails."), argv=["program"])
  assert capsys.readouterr().err == ""


def test_the_first_ten_problems_are_shown_in_full_and_the_rest_counted():
  message = str(from_problems([f"file {n} is bad" for n in range(13)], "Nothing was built."))
  assert message.startswith("13 problems")
  assert "file 9 is bad" in message and "file 10 is bad" not in message
  assert "and 3 more" in message


def test_one_problem_is_one_line():
  assert "\n" not in str(from_problems(["file is bad."], "Nothing was built."))


def test_an_unknown_name_lists_the_nearest_and_all():
  message = str(unknown_name("dataset", "hipocampus", ["hippocampus_t1w", "brain_ich_ct"]))
  assert "Did you mean 'hippocampus_t1w'?" in message and "brain_ich_ct" in message
  assert isinstance(unknown_name("a", "b", ["c"]), InputError)


NOISY = """
import os, sys
from flexunet.core import command_line
from flexunet.core.errors import InputError
with command_line.noise_aside() as lines:
  os.write(2, b"a warning of a library\\n")
  {body}
print(lines)
"""


@pytest.mark.parametrize(
    ("body", "shown"), [("pass", False), ("raise KeyError('x')", True), ("raise InputError", False)]
)
def test_what_libraries_write_is_shown_only_where_they_fail(body, shown):
  done = subprocess.run(
      [sys.executable, "-c", NOISY.format(body=body)], capture_output=True, text=True, check=False
  )
  assert ("a warning of a library" in done.stderr) == shown
  assert (done.stdout == "['a warning of a library']\n") == (body == "pass")


def test_a_reader_that_closes_the_pipe_early_gets_no_trace():
  body = "[print('line', flush=True) for _ in range(100000)]"
  program = subprocess.Popen(
      [sys.executable, "-c", PROGRAM.format(body=body)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert program.stdout.readline() == "line\n"
  program.stdout.close()
  assert program.stderr.read() == ""
  assert program.wait() == 141
