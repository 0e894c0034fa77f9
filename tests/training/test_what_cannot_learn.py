"""What cannot learn is refused before anything is written, in a line that names the options to change."""

from __future__ import annotations

import pytest
from run_helpers import method_config

from sslcli.contracts.errors import UserError
from sslcli.training.setup import build
from sslcli.training.train import train
from sslcli.training.trial import check_micro_batch

ONE = ("training.batch_size=4", "training.accumulate=4")


@pytest.mark.parametrize(
    ("case", "overrides", "why"),
    [
        ("simclr", [], "learns from no fewer than 2"),
        ("supcon", [], "learns from no fewer than 2"),
        ("vicreg", ["method.projector.norm=none"], "learns from no fewer than 2"),
        ("swav", [], "learns from no fewer than 2"),
        ("simsiam", [], "cannot be trained on one image at a time .*more than 1 value per channel"),
        ("byol", [], "cannot be trained on one image at a time"),
        ("moco", ["method.preset=simclr"], "learns from no fewer than 2"),
        ("moco", ["method.preset=byol"], "cannot be trained on one image at a time"),
    ],
)
def test_micro_batches_of_one_image_are_refused(tmp_path, case, overrides, why):
    with pytest.raises(
        UserError, match=rf"training\.batch_size: 4 images.*{why}.*set training\.accumulate=2 or"
    ) as error:
        train(method_config(case, *ONE, *overrides), tmp_path / "run")
    assert "training.batch_size=8" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("case", "overrides"),
    [
        ("byol", ["method.projector.norm=none", "method.predictor.norm=none"]),
        ("moco_v2", []),
        ("dino", []),
    ],
)
def test_methods_that_need_no_other_image_train_on_one_at_a_time(tmp_path, case, overrides):
    session = build(method_config(case, *ONE, *overrides))
    before = {name: tensor.clone() for name, tensor in session.method.state_dict().items()}
    check_micro_batch(session)
    assert all(tensor.equal(before[name]) for name, tensor in session.method.state_dict().items())


def test_batch_norms_count_the_images_of_all_processes_if_they_are_synchronized():
    config = method_config("simsiam", "training.batch_size=4")
    check_micro_batch(build(config), processes=4)
    separate = build(method_config("simsiam", "training.batch_size=4", "training.sync_batch_norm=false"))
    with pytest.raises(UserError, match=r"1 at a time on each of 4 processes.*set training\.batch_size=8"):
        check_micro_batch(separate, processes=4)
