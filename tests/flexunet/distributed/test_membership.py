"""Which process of a run this is: flags before the variables of Keras, Slurm and Kubernetes."""

import pytest

from flexunet.core.errors import InputError
from flexunet.distributed import membership

SLURM = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],cpu3",
}  # fmt: skip


def place(found):
  return (found.coordinator, found.index, found.count) if found else None


@pytest.mark.parametrize(
    ("given", "variables", "wanted"),
    [
        ((None, None, None), {}, None),
        (("n1:500", 1, 2), {}, ("n1:500", 1, 2)),
        (("[::1]:500", 0, 2), {}, ("[::1]:500", 0, 2)),
        # 61440 + 4097 modulo 4096.
        ((None, None, None), SLURM, ("gpu07:61441", 2, 4)),
        (("n1:500", None, None), SLURM, ("n1:500", 2, 4)),
        # One process whatever srun says: runs of their own.
        ((None, None, 1), SLURM, None),
        # The script of a batch job: one process, of however many tasks.
        ((None, None, None), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ((None, None, None), {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        (("job-0.svc:500", None, 3), {"JOB_COMPLETION_INDEX": "2"}, ("job-0.svc:500", 2, 3)),
        # Every Indexed Job has an index, also one whose pods train runs of their own.
        ((None, None, None), {"JOB_COMPLETION_INDEX": "2"}, None),
        ((None, None, None),
         {"KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1,b:1", "KERAS_DISTRIBUTION_PROCESS_ID": "1"},
         ("a:1", 1, 2)),
    ],
)  # fmt: skip
def test_the_place_of_a_process_is_found(given, variables, wanted):
  assert place(membership.find(*given, variables)) == wanted


@pytest.mark.parametrize(
    ("given", "variables", "message"),
    [
        ((None, 1, None), {}, "missing: --num_processes, --coordinator"),
        (("n1:500", None, 2), {}, "missing: --process_id"),
        (("n1:500", 2, 2), {}, r"--process_id must lie in 0\.\.1"),
        (("n1", 0, 2), {}, "--coordinator must be HOST:PORT"),
        (("n1:99999", 0, 2), {}, "--coordinator must be HOST:PORT"),
        ((None, 3, 1), {}, "--process_id must be 0"),
        ((None, None, None), {**SLURM, "SLURM_PROCID": "x"}, "SLURM_PROCID must be a whole number"),
    ],
)
def test_what_does_not_fit_together_is_refused(given, variables, message):
  with pytest.raises(InputError, match=message):
    membership.find(*given, variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n7", "n7"), ("a,b", "a"), ("gpu[01-04,07],cpu3", "gpu01"), ("x[3,5]", "x3"), ("", "")],
)
def test_the_first_node_of_a_list_is_that_of_slurm(nodes, first):
  assert membership._first_node(nodes) == first


def test_several_hosts_train_on_jax_and_a_missing_package_is_one_line(monkeypatch):
  member = membership.Membership("n1:500", 0, 2)
  with pytest.raises(InputError, match="Several hosts train on --backend=jax. Got: tensorflow"):
    membership.chosen_backend("tensorflow", member, {})
  monkeypatch.setattr(membership.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"needs the extra jax.*pip install 'flexunet\[jax\]'"):
    membership.chosen_backend(None, member, {})
  with pytest.raises(InputError, match=r"needs the extra torch"):
    membership.chosen_backend(None, None, {"KERAS_BACKEND": "torch"})


def test_the_place_passes_through_the_environment(monkeypatch):
  member = membership.Membership("n1:500", 1, 3)
  monkeypatch.setenv(membership.VARIABLE, member.to_json())
  assert membership.Membership.of_environment() == member
