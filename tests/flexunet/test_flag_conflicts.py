"""What cannot be is refused in one line, before anything is decoded, built or written."""

import dataclasses

import flagged
import forked
import keras
import pytest

from flexunet import run_folder
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.network import model

CONFLICTS = [
    (["--num_classes=2"], "num_classes must be 3, the classes of blobs"),
    (["--loss=dise"], "Did you mean 'dice'"),
    (["--loss=bce_dice"], "num_classes must be 1 or 2. Got: 3"),
    (["--loss=basnet_hybrid"], "num_classes must be 1 or 2. Got: 3"),
    (["--loss=dice", "--loss_options=gamma=2"], "loss dice has no option 'gamma'. Its options:"),
    (["--loss=focal", "--loss_options=gamma"], "name=number"),
    (["--loss=focal", "--loss_options=gamma=__import__('os')"], "name=number"),
    (["--loss_options=class_weights=3"], "Pass --class_weights"),
    (["--class_weights=1,2"], "one number per label value, 3 for 3 classes. Got 2"),
    (["--class_weights=1,x,2"], "one number per class"),
    (["--class_weights=1,0,0"], "must be above 0"),
    (["--class_weights=1,-1,1"], "must not be negative"),
    (["--deep_supervision"], "deep_supervision needs num_layers of at least 3. Got: 2"),
    (["--context_slices=1"], "image_channels must be 3. Got: 1"),
    (["--context_slices=2", "--image_channels=3"], "image_channels must be 5. Got: 3"),
    (["--base_kernels=4"], "base_kernels must be odd"),
    (["--num_layers=8", "--dropout_rate=0.2"], "dropout of the deepest stage"),
    (["--class_balance", "--foreground_fraction=0"], "needs --foreground_fraction above 0"),
    (["--clipvalue=1", "--clipnorm=1"], "cannot both be above 0"),
    (["--optimizer=adam", "--weight_decay=0.1"], "--weight_decay is of --optimizer=adamw"),
    (["--momentum=0.9"], "--momentum is of --optimizer=sgd"),
    (["--budget=standart"], "Did you mean 'standard'"),
    (["--network_size=XL"], "must be one of S, M, L"),
    (["--optimizer=moun"], "Did you mean 'muon'"),
    (["--optimizer=schedule_free", "--schedule=cosine"], "Leave --schedule out"),
    (["--optimizer=schedule_free", "--ema_momentum=0.9"], "keeps one average of its weights"),
    (["--optimizer=schedule_free", "--weight_average=0.5"], "keeps one average of its weights"),
    (["--weight_average=0.2", "--ema_momentum=0.9"], "--weight_average and --ema_momentum"),
    (["--weight_average=1.5"], "not a number in the range"),
    (["--label_smoothing=0.1", "--loss=dice"], "of losses with cross-entropy: cross_entropy"),
    (["--label_smoothing=0.1", "--loss_options=label_smoothing=0.2"], "not both"),
    (["--label_smoothing=0.7"], "not a number in the range"),
    (["--cache=ram", "--cache_dir=/tmp"], "--cache_dir is of --cache=disk"),
    (["--data_service=node7"], "--data_service must be grpc://HOST:PORT, e.g."),
    (["--data_service=grpc://node7:5050", "--cache=ram"], "but workers of --data_service decode"),
    (["--data_service_timeout_s=0"], "0.0 is not number >= 1.0"),
    (["--train_split=validation"], "must differ"),
    (["--fold=7"], "It has: 0, 1, 2. Got: 7"),
    (["--label_key=mask"], "mask"),
    (["--subject_key=subject"], "--subject_key is for datasets built elsewhere"),
    (["--label_values=0,255"], "--label_values is for datasets built elsewhere"),
    (["--label_values=black,white"], "must be whole numbers such as 0,255"),
    (["--init_from=/nowhere/at/all"], "it is not there"),
    (["--patch_size=small"], "--patch_size must be auto, none, or one or two whole numbers"),
    (["--patch_size=16,0"], "whole numbers above 0 such as 96,96. Got: 16,0"),
    (["--patch_size=16,15"], "must be multiples of 2 for 2 stages. Got: 16,15. Take 16,16"),
    (["--patch_foreground_share=0.5", "--patch_size=none"], "this run is to train on whole slices"),
    (["--metrics=dise"], "Did you mean 'dice'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("given", "message"), CONFLICTS, ids=lambda x: " ".join(x)[:60])
def test_an_impossible_combination_is_refused(data_dir, given, message):
  with pytest.raises(InputError) as refused:
    flagged.setup(data_dir, *given)
  assert message in str(refused.value) and "\n" not in str(refused.value)


def test_more_devices_than_there_are_is_refused(data_dir):
  with pytest.raises(InputError, match="--num_devices=64"):
    _ = flagged.setup(data_dir, "--num_devices=64", "--batch_size=64").prepared


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--learning_rat=1", "Did you mean: learning_rate"),
        ("--activation=relo", "relu"),
        ("--epochs=0", "positive"),
        ("--batch_size=two", "batch_size"),
    ],
)
def test_a_misspelt_flag_or_value_is_refused_by_the_parser(given, message):
  with pytest.raises(InputError, match=message):
    flagged.parse(given)


def test_class_balance_asks_for_a_drawn_share_by_itself(data_dir):
  assert flagged.setup(data_dir, "--class_balance").config.data.foreground_fraction == 0.5


@pytest.fixture(scope="module")
def start(data_dir, tmp_path_factory):
  """A run folder as training leaves it, of untrained weights."""
  made = flagged.setup(data_dir)
  run = run_folder.RunFolder.create(tmp_path_factory.mktemp("runs") / "start")
  run.write_config(made.config)
  keras.Model(made.kept.input, made.kept.output).save(run.model_keras)
  return run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--activation=elu"], "Pass --activation=relu"),
        (["--dilation=2"], "Pass --dilation=1"),
        (["--normalization=none"], "Pass --normalization=batch"),
    ],
)
def test_a_start_whose_weights_would_mean_something_else_is_refused(
    data_dir, start, given, message
):
  with pytest.raises(InputError, match=message):
    flagged.setup(data_dir, f"--init_from={start.path}", *given)


def test_a_start_of_other_filters_is_refused(data_dir, start):
  with pytest.raises(InputError, match="filters and kernels"):
    _ = flagged.setup(data_dir, f"--init_from={start.path}", "--base_filters=8").prepared


def with_classes(start, folder, names):
  """Returns the run again, as if its classes had other names."""
  run = run_folder.RunFolder.create(folder)
  before = start.read_config()
  scheme = [{"name": name, "color": [n, n, n]} for n, name in enumerate(names)]
  facts = dataclasses.replace(
      before.dataset_facts, label_scheme=LabelScheme.from_json(scheme)
  )
  shape = dataclasses.replace(before.model, num_classes=len(names))
  run.write_config(dataclasses.replace(before, model=shape, dataset_facts=facts))
  run.model_keras.write_bytes(start.model_keras.read_bytes())
  return run


def test_a_head_of_other_classes_is_reinitialized_and_that_is_said(
    data_dir, start, tmp_path, capsys
):
  other = with_classes(start, tmp_path / "other", ["background", "lesion", "edema"])
  _ = flagged.setup(data_dir, f"--init_from={other.path}").prepared
  said = "".join(capsys.readouterr())
  assert "head reinitialized" in said
  assert "It has the classes background, lesion, edema;" in said
  assert "this dataset has background, dim, bright." in said


def test_a_head_of_another_number_of_classes_is_reinitialized(data_dir, start, tmp_path, capsys):
  run = with_classes(start, tmp_path / "other", ["background", "lesion"])
  made = model.build_model(
      image_size=None, image_channels=1, num_classes=2, base_filters=4, base_kernels=3,
      num_layers=2, normalization="batch",
  )  # fmt: skip
  made.save(run.model_keras)
  _ = flagged.setup(data_dir, f"--init_from={run.path}").prepared
  assert "head reinitialized" in "".join(capsys.readouterr())


def test_a_dataset_of_another_palette_is_not_evaluated(data_dir, start, tmp_path):
  run = with_classes(start, tmp_path / "other", ["background", "lesion", "edema"])
  with pytest.raises(InputError, match="must have the classes of the run"):
    evaluate.evaluate(run, ["test"], show_progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--learning_rat=1"], "Did you mean: learning_rate"),
        (["--preset=published/hipocampus"], "published/hippocampus_t1w"),
        (["--class_weights=1,2"], "one number per label value"),
        (["--deep_supervision", "--num_layers=2"], "num_layers of at least 3"),
    ],
)
def test_the_trainer_ends_with_one_line_and_writes_nothing(data_dir, tmp_path, given, message):
  where = (f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}")
  done = forked.command("train", *where, *given)
  assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()
