"""Published evaluations by name: every value, with the file that has it; what a user gives wins."""

from __future__ import annotations

import json

import pytest
import torch
from evaluation_helpers import clusters
from run_helpers import done, ssl
from torch import nn

from sslcli.config.options import overrides_as_data
from sslcli.contracts.backbone import BackboneSpec
from sslcli.contracts.errors import ConfigError
from sslcli.evaluation.selection import choose_evaluators
from sslcli.evaluators.linear.heads import cached_batches, standardizations, train_heads
from sslcli.evaluators.linear.protocols import PROTOCOLS
from sslcli.evaluators.probes.images import PROBE_TRAIN, read_views
from sslcli.evaluators.probes.training import Training, draw_weights
from sslcli.randomness import permutation, seed_for

RESNET50 = BackboneSpec(2048)
VIT_S, VIT_B = (BackboneSpec(dim, patch_size=16, size_multiple=16) for dim in (384, 768))


def ready(*words, method="linear", spec=None):
    return choose_evaluators(method, overrides_as_data(list(words)))[method].build(spec)


PLAIN = {"name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "scale_lr": "none"}
#: name: learning rates, batch size, epochs, optimizer where it is not PLAIN, schedule, first weights, crop and resize.
VALUES = {
    # barlowtwins/evaluate.py: --lr-classifier 0.3 --batch-size 256 --epochs 100 --weight-decay 1e-6; SGD(momentum=0.9),
    # CosineAnnealingLR once an epoch, fc.weight normal_(std=0.01); README: --lr-classifier 0.3
    "barlow_twins": ((0.3,), 256, 100, {"weight_decay": 1e-6}, "epoch", "normal", "bilinear"),
    # byol/configs/eval.py: 80 epochs, momentum 0.9, nesterov, base_learning_rate 0.2, warmup_steps 0; schedules.py: by
    # step, × batch_size / 256; hk.Linear; dataset.py: bicubic; the paper: batch 1024, these five rates
    "byol": (
        (0.4, 0.3, 0.2, 0.1, 0.05), 1024, 80, {"nesterov": True, "scale_lr": "batch/256"}, "step", "lecun", "bicubic",
    ),
    # dino/eval_linear.py: --lr 0.001 × total batch / 256, --batch_size_per_gpu 128 (README: 8 GPUs), --epochs 100,
    # momentum=0.9, weight_decay=0, CosineAnnealingLR; RandomResizedCrop(224), Resize(256, interpolation=3)
    "dino": ((0.001,), 1024, 100, {"scale_lr": "batch/256"}, "epoch", "normal", "bilinear"),
    "dino_vitb": ((0.001,), 1024, 100, {"scale_lr": "batch/256"}, "epoch", "normal", "bilinear"),
    # dino_resnet50_pretrain_eval_linear_log.txt: train_lr 0.3 in epoch 0, 0.299926 in epoch 1
    "dino_resnet": ((0.3,), 256, 100, {"scale_lr": "batch/256"}, "epoch", "normal", "bilinear"),
    # moco/main_lincls.py: --lr 30 --batch-size 256 --epochs 100 --schedule 60 80 --momentum 0.9 --wd 0
    "moco_v1": ((30.0,), 256, 100, {}, "60, 80", "normal", "bilinear"),
    "moco_v2": ((30.0,), 256, 100, {}, "60, 80", "normal", "bilinear"),
    # moco-v3/main_lincls.py: --lr 0.1 × batch / 256, --batch-size 1024 --epochs 90 --wd 0, cosine by epoch
    "moco_v3": ((0.1,), 1024, 90, {"scale_lr": "batch/256"}, "epoch", "normal", "bilinear"),
    # moco-v3/CONFIG.md: -a vit_small --lr=3, -a vit_base --lr=3
    "moco_v3_vit": ((3.0,), 1024, 90, {"scale_lr": "batch/256"}, "epoch", "normal", "bilinear"),
    # simclr/README.md: --optimizer=momentum --learning_rate=0.1 --weight_decay=1e-6 --train_epochs=90
    # --train_batch_size=4096 --warmup_epochs=0 --zero_init_logits_layer=True; model_util.py: use_nesterov=True, linear
    # scaling, cosine_decay by step; data_util.py: resize_bicubic
    "simclr": (
        (0.1,), 4096, 90, {"weight_decay": 1e-6, "nesterov": True, "scale_lr": "batch/256"}, "step", "zero", "bicubic",
    ),
    # simsiam/main_lincls.py: --lr 0.1 × batch / 256, --batch-size 4096 --epochs 90 --wd 0, cosine by epoch; --lars:
    # LARC(trust_coefficient=.001, clip=False)
    "simsiam": (
        (0.1,), 4096, 90,
        {"name": "larc", "scale_lr": "batch/256", "clip": False, "trust_coefficient": 0.001, "eps": 1e-8,
         "exclude_1d": False},
        "epoch", "normal", "bilinear",
    ),
    # swav/eval_linear.py: --lr 0.3 --wd 1e-6 --epochs 100 --batch_size 32 (README: 8 GPUs), --scheduler_type cosine
    # --nesterov False --use_bn False
    "swav": ((0.3,), 256, 100, {"weight_decay": 1e-6}, "epoch", "normal", "bilinear"),
    # vicreg/evaluate.py: --batch-size 256 --epochs 100 --weight-decay 1e-6; README: --lr-head 0.02
    "vicreg": ((0.02,), 256, 100, {"weight_decay": 1e-6}, "epoch", "normal", "bilinear"),
}  # fmt: skip
#: epochs whose first step has these shares of the rate.
SCHEDULES = {
    "epoch": {"name": "cosine", "per_epoch": True, "final": 0.0, "final_lr": None},
    "step": {"name": "cosine", "per_epoch": False, "final": 0.0, "final_lr": None},
    "60, 80": {"name": "step", "milestones": [0.6, 0.8], "factor": 0.1},
}
#: feature, interpolation of the resized images (Resize(256), CenterCrop(224); the same crop in TensorFlow).
SHOWN = {
    "dino": ("cls_last4", "bicubic"),  # --n_last_blocks 4 for ViT-S
    "dino_vitb": ("cls_mean", "bicubic"),  # --n_last_blocks 1 --avgpool_patchtokens true for ViT-B
    "dino_resnet": ("pooled", "bicubic"),
    "byol": ("pooled", "bicubic"),
    "simclr": ("pooled", "bicubic"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_value_is_the_authors(name):
    lr, batch_size, epochs, optimizer, schedule, init, crop = VALUES[name]
    made = ready(f"protocol={name}")
    options = made.evaluator.options
    assert (options.protocol, options.lr, options.batch_size, options.epochs) == ("augmented", lr, batch_size, epochs)
    expected = {**PLAIN, "exclude": [], "exclude_names": [], "final_weight_decay": None, **optimizer}
    assert json.loads(json.dumps(options.optimizer)) == expected
    warmup = {"warmup": "linear", "warmup_epochs": 0.0, "warmup_start": 0.0, "warmup_start_lr": None}
    expected = {**SCHEDULES[schedule], **warmup, "warmup_steps": None}
    assert json.loads(json.dumps(options.schedule)) == expected
    assert (options.standardize, options.init, options.precision) == ((False,), init, "fp32")
    choice = (10_000 / 1_281_167, False) if name == "byol" else (0.1, True)
    assert (options.held_out, options.refit) == choice
    (view,) = read_views(options.views, PROBE_TRAIN, 224)
    crop_and_flip = view.plain()["operations"]
    assert [each["name"] for each in crop_and_flip] == ["crop", "flip"]
    assert crop_and_flip[0]["options"] == {"interpolation": crop, "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]}
    feature, interpolation = SHOWN.get(name, ("pooled", "bilinear"))
    assert made.shown == {"feature": feature, "interpolation": interpolation}
    assert made.published["name"] == name


@pytest.mark.parametrize(
    ("name", "rate"),
    [("swav", 0.3), ("dino", 0.004), ("dino_resnet", 0.3), ("moco_v1", 30.0), ("moco_v3", 0.4), ("moco_v3_vit", 12.0),
     ("simsiam", 1.6), ("simclr", 1.6), ("byol", 1.6), ("vicreg", 0.02), ("barlow_twins", 0.3)],
)  # fmt: skip
def test_the_rate_at_the_start_is_the_one_that_the_authors_code_sets(name, rate):
    options = ready(f"protocol={name}").evaluator.options
    schedule = Training.of(options, 1_281_167, whole=True).schedule_for(options.lr[0], 5)
    assert schedule(0) == pytest.approx(rate)
    falls = {"epoch": 0.299926 / 0.3, "60, 80": 1.0}.get(VALUES[name][4])
    if falls is not None and options.epochs == 100:
        assert [schedule(step) / rate for step in (4, 5, 9)] == pytest.approx([1.0, falls, falls], abs=1e-6)


@pytest.mark.parametrize("name", ["swav", "byol", "moco_v2"])
def test_a_classifier_is_trained_as_by_torchs_sgd_and_schedule_in_float64(name):
    """The bias decays too, and the rate changes once an epoch (BYOL's: at every step)."""
    data, rows = clusters(60, 4), torch.arange(60)
    given = (f"protocol={name}", "batch_size=20", "epochs=5", "lr=0.5", "optimizer.weight_decay=0.01")
    options = ready(*given).evaluator.options
    training = Training.of(options, 60, whole=True)
    features = data.features.double()
    scalings = standardizations(features, rows, [False])
    heads, _, _ = train_heads(
        cached_batches(features, data.labels, rows, 20, 3), 3, scalings, 4, [0.5], training, 3,
    )  # fmt: skip
    layer = nn.Linear(5, 4, dtype=torch.float64)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.copy_(draw_weights((4, 5), training.init, seed_for(3, 3)))
    rate = 0.5 * (20 / 256 if name == "byol" else 1.0)
    sgd = torch.optim.SGD(layer.parameters(), rate, momentum=0.9, weight_decay=0.01, nesterov=name == "byol")
    lr_scheduler = torch.optim.lr_scheduler
    by_epoch = {
        "swav": lambda: lr_scheduler.CosineAnnealingLR(sgd, 5),
        "moco_v2": lambda: lr_scheduler.MultiStepLR(sgd, [3, 4], gamma=0.1),  # 60 and 80% of five epochs
        "byol": lambda: lr_scheduler.CosineAnnealingLR(sgd, 15),
    }[name]()
    for epoch in range(5):
        for batch in rows[permutation(seed_for(3, 2), epoch, 60)].split(20):
            sgd.zero_grad()
            nn.functional.cross_entropy(layer(features[batch]), data.labels[batch]).backward()
            sgd.step()
            if name == "byol":
                by_epoch.step()
        if name != "byol":
            by_epoch.step()
    torch.testing.assert_close(heads.weight[0, 0], layer.weight.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(heads.bias[0, 0], layer.bias.detach(), rtol=1e-9, atol=1e-11)


def test_haikus_first_weights_are_cut_at_two_standard_deviations():
    weights = draw_weights((1000, 64), "lecun", 0)
    assert float(weights.abs().max()) <= 0.25  # 2/√64
    assert float(weights.std()) == pytest.approx(0.8796 / 8, rel=0.01)  # of a normal distribution cut at 2


def test_dino_and_moco_v3_are_those_of_the_backbone():
    for name, spec, expected in (
        ("dino", VIT_S, "dino"), ("dino", VIT_B, "dino_vitb"), ("dino", RESNET50, "dino_resnet"),
        ("moco_v3", RESNET50, "moco_v3"), ("moco_v3", VIT_S, "moco_v3_vit"), ("swav", VIT_B, "swav"),
        ("dino_vitb", VIT_S, "dino_vitb"),
    ):  # fmt: skip
        assert ready(f"protocol={name}", spec=spec).published["name"] == expected


def test_what_the_user_gives_wins_and_another_optimizer_takes_none_of_the_options():
    options = ready(
        "protocol=swav", "lr=[1, 2]", "optimizer.nesterov=true", "views.crop_scale=[0.2, 1]"
    ).evaluator.options
    assert (options.lr, options.epochs) == ((1, 2), 100)
    assert (options.optimizer["nesterov"], options.optimizer["weight_decay"]) == (True, 1e-6)
    assert options.views == {"preset": "probe_train", "interpolation": "bilinear", "crop_scale": [0.2, 1]}
    options = ready("protocol=swav", "optimizer=adamw", "schedule=constant").evaluator.options
    assert (options.optimizer["name"], options.optimizer["weight_decay"]) == ("adamw", 0.0)
    assert options.schedule["name"] == "constant"


def test_knn_has_dinos():
    made = ready("protocol=dino", method="knn")
    assert (made.evaluator.options.k, made.evaluator.options.temperature) == ((20, 10, 100, 200), (0.07,))
    assert made.shown == {"feature": "pooled", "interpolation": "bicubic"}


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("linear", ["protocol=dinoo"], "command line: protocol: 'linear' has no protocol 'dinoo'; did you mean dino?"),
        ("linear", ["protocol=augmentd"], "'linear' has no protocol 'augmentd'; did you mean augmented?"),
        ("knn", ["protocol=dnio"], "'knn' has no protocol 'dnio'; did you mean dino?"),
        ("logistic", ["protocol=dino"], "command line: protocol: unknown option of 'logistic'"),
        ("all", ["protocol=dino"], "command line: protocol: dino is for one evaluator; choose it: --method"),
        ("linear", ["protocol=[dino]"], "command line: protocol: should be 'features' or 'augmented', not"),
        ("linear", ["protocol=dino", "lrr=3"], "command line: lrr: unknown option of 'linear'; did you mean lr?"),
        ("linear", ["protocol=dino", "epochs=-1"], "command line: epochs: should be greater than or equal to 1"),
    ],
)
def test_an_unknown_protocol_or_option_is_one_line(method, words, said):
    with pytest.raises(ConfigError) as caught:
        choose_evaluators(method, overrides_as_data(words))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ("data={name: shapes, count: 48, size: 20, limit: 24}", "image_size=16")
    vit = ("vit_tiny", "backbone.patch_size=8", "backbone.depth=4", *data)
    few = ("--method", "linear", "protocol=dino", "epochs=1", "batch_size=8", "workers=0", "--json")
    protocol = json.loads(done("eval", *vit, *few)[0])["protocol"]
    assert protocol["published"]["name"] == "dino"
    assert (protocol["feature"], protocol["feature_dim"], protocol["interpolation"]) == ("cls_last4", 768, "bicubic")
    assert (protocol["batch_size"], protocol["lr"], protocol["epochs"]) == (8, [0.001], 1)
    resnet = ("resnet18", "backbone.stem=small", "backbone.width=4", *data)
    protocol = json.loads(done("eval", *resnet, *few, "interpolation=bilinear")[0])["protocol"]
    assert (protocol["published"]["name"], protocol["feature"]) == ("dino_resnet", "pooled")
    assert protocol["interpolation"] == "bilinear"
    code, _, said = ssl("eval", *resnet, *few, "feature=cls_last4")
    assert code == 2
    assert said.splitlines()[-1].startswith("ssl: resnet18: feature=cls_last4: this network has no class token; use ")
    assert "features of" not in said
    out, _ = done("list", "evaluators", "linear")
    assert "dino_vitb: facebookresearch/dino, eval_linear.py" in out
    assert "feature: str" in out
