"""Named settings: the papers' numbers, and what overrides them."""

from __future__ import annotations

import pytest

from sslcli.config.options import overrides_as_data
from sslcli.contracts.errors import ConfigError
from sslcli.evaluation.selection import choose_evaluators
from sslcli.evaluators.finetune.protocols import PROTOCOLS
from sslcli.evaluators.probes.images import read_views
from sslcli.evaluators.probes.training import Training


def options_of(*words):
    return ready(*words).evaluator.options


def ready(*words):
    return choose_evaluators("finetune", overrides_as_data(list(words)))["finetune"].build()


def rates(options, images=1_281_167, steps=1251):
    how = Training.of(options, images)
    return how.schedule_for(options.lr[0], steps)


def test_mae_is_its_repositorys():
    """FINETUNE.md for ViT-B (blr 5e-4 per 256, layer decay .65, 100 epochs, B 1024), main_finetune.py for the rest."""
    mae = options_of("protocol=mae")
    assert (mae.epochs, mae.batch_size, mae.layer_decay, mae.drop_path) == (100, 1024, 0.65, 0.1)
    assert (mae.mixup, mae.cutmix, mae.mixing_probability, mae.switch_probability) == (0.8, 1.0, 1.0, 0.5)
    assert (mae.label_smoothing, mae.ema_decay, mae.head_lr) == (0.1, None, None)
    adamw = mae.optimizer
    assert (adamw["name"], adamw["weight_decay"], tuple(adamw["betas"])) == ("adamw", 0.05, (0.9, 0.999))
    assert adamw["exclude"] == ["norm", "bias", "embedding"]
    schedule = rates(mae)
    assert schedule.base == pytest.approx(2e-3)
    assert [schedule(step) for step in (0, 2502, 6255)] == pytest.approx([0, 0.8e-3, 2e-3])
    assert schedule(6255 + 1251 * 95 // 2) == pytest.approx((2e-3 + 1e-6) / 2, rel=1e-3)
    assert schedule(125_099) == pytest.approx(1e-6, rel=1e-2)


def test_both_have_timms_views():
    """`rand-m9-mstd0.5-inc1` with the mean color, bicubic crops of 8% and more, and reprob .25 in mode `pixel`."""
    for name in PROTOCOLS:
        (view,) = read_views(options_of(f"protocol={name}").views, {}, 224)
        operations = {each.name: each.options for each in view.operations}
        assert list(operations) == ["crop", "flip", "randaugment", "random_erasing"]
        assert (operations["crop"]["scale"], operations["crop"]["interpolation"]) == ([0.08, 1.0], "bicubic")
        assert operations["flip"]["p"] == 0.5
        rand = operations["randaugment"]
        assert (rand["p"], rand["layers"], rand["magnitude"], rand["magnitude_std"]) == (0.5, 2, 9.0, 0.5)
        assert [round(255 * each) for each in rand["fill"]] == [124, 116, 104]
        erasing = operations["random_erasing"]
        assert (erasing["p"], erasing["fill"], erasing["scale"][0]) == (0.25, "noise", 0.02)
        assert erasing["scale"][1] == pytest.approx(1 / 3)
        assert erasing["ratio"] == pytest.approx([0.3, 1 / 0.3])
    (plain,) = read_views(options_of("protocol=mae", "views.randaugment=0", "views.random_erasing=0").views, {}, 224)
    assert [each.name for each in plain.operations] == ["crop", "flip"]


def test_deit_is_its_repositorys():
    """The defaults of main.py: 5e-4·B/512, from 1e-6 to 1e-5, EMA .99996; the README's 4 processes of 256."""
    deit = options_of("protocol=deit")
    assert (deit.epochs, deit.batch_size, deit.layer_decay, deit.drop_path) == (300, 1024, 1.0, 0.1)
    assert (deit.mixup, deit.cutmix, deit.label_smoothing, deit.ema_decay) == (0.8, 1.0, 0.1, 0.99996)
    assert (deit.optimizer["name"], deit.optimizer["weight_decay"]) == ("adamw", 0.05)
    schedule = rates(deit)
    assert schedule.base == pytest.approx(5e-4 * 1024 / 512)
    # Our cosine begins after the warm-up; timm's begins at epoch 0, so that it is 0.99932e-3 here (docs/probes.md).
    assert [schedule(step) for step in (0, 6255)] == pytest.approx([1e-6, 1e-3])
    assert schedule(300 * 1251 - 1) == pytest.approx(1e-5, rel=1e-2)


def test_the_users_own_options_go_first():
    mae = options_of("protocol=mae", "lr=[0.001,0.002]", "optimizer.weight_decay=0.3", "mixup=0", "drop_path=null")
    assert (mae.lr, mae.mixup, mae.drop_path) == ((0.001, 0.002), 0.0, None)
    assert (mae.optimizer["name"], mae.optimizer["weight_decay"]) == ("adamw", 0.3)
    assert mae.optimizer["scale_lr"] == "batch/256"
    other = options_of("protocol=mae", "optimizer.name=sgd", "schedule.name=constant")
    assert (other.optimizer["name"], other.optimizer["weight_decay"]) == ("sgd", 0.0)
    assert other.schedule["warmup_epochs"] == 0
    assert options_of().optimizer["name"] == "sgd"


def test_the_feature_and_the_resize_are_those_of_the_papers_code():
    """MAE's default is `global_pool`; both resize with PIL's bicubic filter."""
    assert ready("protocol=mae").shown == {"feature": "tokens", "interpolation": "bicubic"}
    assert ready("protocol=deit").shown == {"interpolation": "bicubic"}
    assert {name: ready(f"protocol={name}").published["name"] for name in PROTOCOLS} == {"mae": "mae", "deit": "deit"}
    assert all(f"facebookresearch/{name}, " in each.source for name, each in PROTOCOLS.items())


def test_an_unknown_name_is_one_line():
    with pytest.raises(ConfigError, match=r"^command line: protocol: 'finetune' has no protocol 'beit'; [^\n]*$"):
        options_of("protocol=beit")
