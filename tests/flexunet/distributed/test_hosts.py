"""A process that is alone is a group of one; what several share is tested in test_two_processes."""

import numpy as np
import pytest

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.distributed import agreement, hosts


def test_alone_everything_is_its_own():
  assert (hosts.count(), hosts.index(), hosts.is_first(), hosts.num_devices()) == (1, 0, True, 1)
  assert hosts.largest(7) == 7 and hosts.time_of_first(0.1) == 0.1
  assert hosts.on_first(lambda: [1, 2]) == [1, 2]
  array = np.array([-0.0, np.nan])
  assert hosts.array_of_first(array) is array
  hosts.check_batch(3)
  hosts.check_same("the same flags", {"--seed": 1})
  hosts.leave()


def test_alone_an_error_is_its_own():
  def refuse():
    raise InputError("no")

  for run in (hosts.on_all, hosts.on_first):
    with pytest.raises(InputError, match="^no$"):
      run(refuse)


def test_alone_a_config_is_not_copied():
  made = object()
  assert agreement.config_of_first(lambda: made, None) is made


def test_a_quiet_process_says_nothing(capsys, monkeypatch):
  monkeypatch.setattr(progress, "_quiet", False)
  progress.say("before")
  progress.be_quiet()
  progress.say("after")
  assert list(progress.bar([1, 2])) == [1, 2]
  assert capsys.readouterr().err == "before\n"
