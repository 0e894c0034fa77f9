"""From a document to a `RunConfig`: defaults, all problems at once, the round trip, the digest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from sslcli.config.document import Document, dump_yaml
from sslcli.config.merge import read_config
from sslcli.config.options import parse_options
from sslcli.config.resolve import RunConfig, load_config, resolve
from sslcli.contracts.errors import ConfigError
from sslcli.data.objects.wrapped import WrappedOptions
from sslcli.plugins import load

FULL = """\
seed: 3
method: {name: simclr, temperature: 0.2, projector: {layers: 3, hidden_dim: null}}
backbone: {name: resnet18, stem: small, width: 16}
data: {name: shapes, count: 64}
views: {preset: simclr, size: 24}
optimizer: {name: sgd, lr: 0.4, weight_decay: 1e-4, scale_lr: batch/256}
schedule: {name: cosine, warmup_epochs: 1}
training: {epochs: 3, batch_size: 16, clip: {norm: 3.0}}
checkpoints: {every_epochs: null, every_steps: 5}
callbacks: {knn: {every_epochs: 2}, tensorboard: null}
output: ~/runs/x
"""


SHORT = "method: simclr\ndata: shapes\n"


def from_text(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    (tmp_path / "c.yaml").write_text(text)
    return load_config(tmp_path / "c.yaml", list(overrides))


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text, *overrides)
    assert all("\n" not in line for line in caught.value.problems)
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]


def test_a_complete_config_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = from_text(tmp_path, FULL)
    assert config.seed == 3
    assert config.method.cls is load("methods", "simclr")
    assert config.method.options.projector.layers == 3
    assert config.optimizer.options.weight_decay == 1e-4
    assert config.training.clip is not None
    assert config.training.clip.norm == 3.0
    assert config.checkpoints.every_epochs is None
    assert config.views[0].size == 24
    assert config.output == Path("/home/somebody/runs/x")


def test_two_lines_are_a_config(tmp_path: Path) -> None:
    config = from_text(tmp_path, SHORT)
    assert config == resolve(Document({"method": "simclr", "data": "shapes"}))  # the same from Python
    assert config.backbone.name == "resnet18"
    assert config.optimizer.name == "lars_simclr"  # SimCLR's own
    assert config.schedule.name == "cosine"
    assert set(config.callbacks) == {"progress", "tensorboard", "knn", "online_probe", "collapse"}
    assert config.output is None


def test_options_without_a_name_modify_the_default(tmp_path: Path) -> None:
    default = from_text(tmp_path, SHORT)
    changed = from_text(tmp_path, SHORT, "optimizer.lr=0.7", "backbone.width=8", "schedule.warmup_epochs=0")
    assert changed.optimizer.plain() == {**default.optimizer.plain(), "lr": 0.7}
    assert changed.backbone.plain() == {**default.backbone.plain(), "width": 8}
    assert changed.schedule.plain() == {**default.schedule.plain(), "warmup_epochs": 0}


def test_a_named_section_does_not_inherit_from_the_methods_default(tmp_path: Path) -> None:
    text = f"{SHORT}optimizer: {{name: lars}}\n"
    assert problems(tmp_path, text) == ["c.yaml:3: optimizer.lr: missing; it has no default"]


def test_null_resets_options_and_sections_unless_it_is_a_value(tmp_path: Path) -> None:
    config = from_text(
        tmp_path, FULL, "optimizer.weight_decay=null", "method.projector.layers=null", "backbone=null", "views.size=32",
        "method.temperature=null", "seed=null", "training.epochs=null", "training.clip=null",
    )  # fmt: skip
    assert config.optimizer.options.weight_decay == 0.0
    assert config.method.options.projector.layers == 2
    assert config.method.options.temperature == 0.5
    assert config.backbone.options.width == 64
    assert config.seed == 0
    assert config.training.epochs == 200
    assert config.training.clip is None
    assert from_text(tmp_path, FULL, "training=null").training.epochs == 200


def test_null_disables_a_callback(tmp_path: Path) -> None:
    config = from_text(tmp_path, FULL, "callbacks.collapse=null")
    assert set(config.callbacks) == {"progress", "knn", "online_probe"}
    assert config.callbacks["knn"].options.every_epochs == 2
    assert config.plain()["callbacks"]["tensorboard"] is None


# --- problems


def test_all_problems_of_a_file_are_reported_at_once_and_in_order(tmp_path: Path) -> None:
    text = """\
sed: 3
method: {name: simclr, temprature: 0.2, projector: {layerz: 3}}
backbone: {name: resnet19}
data: {name: shapes, count: "64"}
optimizer:
  name: sgd
  lr: fast
  weight_decy: 1
schedule: cosine
training: {epochs: 1.5, batch_size: 16, clip: {norm: -1}}
checkpoints: [1]
callbacks: {knnn: {}, knn: 3}
views: {preset: simclr, strengt: 2}
output: 3
seed: -1
"""
    assert problems(tmp_path, text) == [
        "c.yaml:1: sed: unknown section; did you mean seed?",
        "c.yaml:2: method.projector.layerz: unknown option of 'simclr'; did you mean layers?",
        "c.yaml:2: method.temprature: unknown option of 'simclr'; did you mean temperature?",
        "c.yaml:3: backbone.name: unknown backbone 'resnet19'; did you mean resnet18 or resnet152 or resnet101?",
        "c.yaml:4: data.count: should be a valid integer, not '64'",
        "c.yaml:7: optimizer.lr: should be a valid number, not 'fast'",
        "c.yaml:8: optimizer.weight_decy: unknown option of 'sgd'; did you mean weight_decay?",
        "c.yaml:10: training.epochs: should be a valid integer, not 1.5",
        "c.yaml:10: training.clip.norm: should be greater than 0, not -1",
        "c.yaml:11: checkpoints: should be a mapping of options, not [1]",
        "c.yaml:12: callbacks.knn: should be a mapping of options, or null to disable it, not 3",
        "c.yaml:12: callbacks.knnn: unknown callback 'knnn'; did you mean knn?",
        "c.yaml:13: views.strengt: unknown option of 'views'; did you mean strength?",
        "c.yaml:14: output: should be the path of a directory, not 3",
        "c.yaml:15: seed: should be a whole number from 0, not -1",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.epochs='3'", "training.epochs: should be a valid integer, not '3'"),
        ("training.epochs=true", "training.epochs: should be a valid integer, not true"),
        ("training.epochs=3.0", "training.epochs: should be a valid integer, not 3.0"),
        ("training.deterministic=1", "training.deterministic: should be a valid boolean, not 1"),
        ("training.deterministic=on", "training.deterministic: should be a valid boolean, not 'on'"),
        ("training.precision=fp8", "training.precision: should be 'auto', 'fp32', 'tf32', 'bf16' or 'fp16', not 'fp8'"),
        ("training.device=gpu", "training.device: should be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        ("training.batch_size=1", "training.batch_size: should be greater than or equal to 2, not 1"),
        ("training.clip=3", "training.clip: should be a mapping of options, not 3"),
        ("training.clip.norm=null", "training.clip.norm: missing; it has no default"),
        ("training.clip.mod=x", "training.clip.mod: unknown option of 'training'; did you mean mode?"),
        ("training.frobnicate=1", "training.frobnicate: unknown option of 'training'; available: accumulate, "),
        ("training.epochs={a: 1}", "training.epochs: should be a valid integer, not {a: 1}"),
        ("training.log_every=[]", "training.log_every: should be a valid integer, not []"),
        ("optimizer.lr=.inf", "optimizer.lr: should be a finite number, not .inf"),
        ("optimizer.lr=.nan", "optimizer.lr: should be a finite number, not .nan"),
        ("optimizer.lr=0", "optimizer.lr: should be greater than 0, not 0"),
        ("optimizer.lr=null", "optimizer.lr: missing; it has no default"),
        ("optimizer=adamw", "optimizer.lr: missing; it has no default"),
        ("optimizer.exclude=[norms]", "optimizer.exclude.0: should be 'weight', 'norm', 'bias' or 'embedding', not "),
        ("optimizer.exclude=norm", "optimizer.exclude: should be a list, not 'norm'"),
        ("optimizer={name: sgd, momentum: 0, nesterov: true}", "optimizer: nesterov needs a momentum above 0"),
        ("optimizer={name: adamw, lr: 1, betas: [0.9]}", "optimizer.betas: has too few values"),
        ("method.projector=3", "method.projector: should be a mapping of options, not 3"),
        ("method.name=[simclr]", "method: should be a name, or a mapping with `name`; see `ssl list methods`"),
        ("data.root=1", "data.root: unknown option of 'shapes'"),
        ("seed=1.5", "seed: should be a whole number from 0, not 1.5"),
        ("seed=true", "seed: should be a whole number from 0, not true"),
        ("training=fast", "training: should be a mapping of options, not 'fast'"),
        ("callbacks=[knn]", "callbacks: should be a mapping of names to options, not [knn]"),
        ("callbacks.knn.k=x", "callbacks.knn.k: should be a valid integer, not 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_in_one_line(tmp_path: Path, override: str, problem: str) -> None:
    (line,) = problems(tmp_path, FULL, override)
    assert line.startswith(f"command line: {problem}")


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, FULL, f"training.epochs={'x' * 5000}")
    assert len(line) < 150


def test_missing_sections_are_reported_with_an_example(tmp_path: Path) -> None:
    assert problems(tmp_path, "seed: 1\n") == [
        "c.yaml:1: method: missing; write `method: simclr`",
        "c.yaml:1: data: missing; write `data: {name: cifar10, root: ./data}`",
    ]
    assert problems(tmp_path, "method: simclr\ndata: {count: 3}\n") == [
        "c.yaml:2: data: should be a name, or a mapping with `name`; see `ssl list datasets`"
    ]


def test_views_are_checked_even_if_the_method_is_unknown(tmp_path: Path) -> None:
    found = problems(tmp_path, "method: simclrr\ndata: shapess\nviews: [{blurr: 1}]\n")
    assert [line.partition(": ")[0] for line in found] == ["c.yaml:1", "c.yaml:2", "c.yaml:3"]
    assert len(problems(tmp_path, "method: simclrr\ndata: shapes\nviews: {flip: 2}\n")) == 1


def test_a_problem_is_reported_for_the_file_with_the_value(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(FULL.replace("lr: 0.4", "lr: fast"))
    (tmp_path / "c.yaml").write_text("extends: base.yaml\ntraining:\n  epochs: many\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", ["method.temperature=hot"])
    assert [line.replace(f"{tmp_path}/", "").rpartition(": ")[0] for line in caught.value.problems] == [
        "command line: method.temperature",
        "base.yaml:6: optimizer.lr",
        "c.yaml:3: training.epochs",
    ]


def test_options_without_a_config_are_checked_alike() -> None:
    knn = load("evaluators", "knn").Options
    assert parse_options(knn, ["k=[5]"], "'knn'").k == (5,)
    assert parse_options(knn, ["k=null"], "'knn'").k == knn().k
    with pytest.raises(ConfigError) as caught:
        parse_options(knn, ["kk=3", "temperature=warm", "k=[0]"], "'knn'")
    assert caught.value.problems == [
        "command line: k.0: should be greater than or equal to 1, not 0",
        "command line: temperature: should be a valid number, not 'warm'",
        "command line: kk: unknown option of 'knn'; did you mean k?",
    ]


# --- the resolved config


def written_and_read(config: RunConfig, tmp_path: Path) -> RunConfig:
    path = tmp_path / "written.yaml"
    path.write_text(dump_yaml(config.plain()), encoding="utf-8")
    return resolve(read_config(path, []))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["views=[{count: 1, blur: 0.5}, {size: 16, flip: 0}]", "optimizer={name: adamw, lr: 1e-20}"],
        ["data={name: cifar10, root: '~/my data: 1'}", "views.0.solarize=0.1"],
        ["callbacks={progress: null, tensorboard: null, knn: null, collapse: null}", "training.max_steps=5"],
        ["optimizer={name: lars, lr: 0.1}", "schedule={name: step}", "backbone={name: resnet50, stem: small}"],
    ],
)
def test_a_resolved_config_describes_the_same_run(tmp_path: Path, overrides: list[str]) -> None:
    config = from_text(tmp_path, FULL, *overrides)
    again = written_and_read(config, tmp_path)
    assert again == config
    assert again.plain() == config.plain()
    assert again.digest() == config.digest()
    assert repr(resolve(Document(copy.deepcopy(config.plain()))).plain()) == repr(config.plain())


def leaves(value: Any, key: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [leaf for name, part in parts for leaf in leaves(part, (*key, name))] or [key]


def test_the_digest_changes_with_every_value(tmp_path: Path) -> None:
    config = from_text(tmp_path, FULL)
    changed = ["seed=4", "method.temperature=0.3", "method.projector.layers=2", "backbone.width=8", "data.count=65",
               "views.flip=0.4", "views.size=25", "optimizer.lr=0.41", "schedule.warmup_epochs=2", "training.epochs=4",
               "training.clip.mode=per_parameter", "checkpoints.keep=3", "callbacks.knn.k=3"]  # fmt: skip
    digests = {from_text(tmp_path, FULL, change).digest() for change in changed}
    assert len(digests | {config.digest()}) == len(changed) + 1


def test_the_digest_does_not_depend_on_how_the_config_is_written(tmp_path: Path) -> None:
    config = from_text(tmp_path, FULL)
    assert len(config.digest()) == 8
    reordered = "\n".join(reversed(FULL.splitlines())) + "\n"
    assert from_text(tmp_path, reordered).digest() == config.digest()
    assert from_text(tmp_path, FULL, "output=elsewhere").digest() == config.digest()
    assert written_and_read(config, tmp_path).digest() == config.digest()


def test_the_plain_config_contains_every_value(tmp_path: Path) -> None:
    plain = from_text(tmp_path, SHORT).plain()
    keys = {".".join(map(str, key)) for key in leaves(plain)}
    assert {"method.temperature", "backbone.stem", "data.split", "optimizer.weight_decay", "checkpoints.keep",
            "training.precision", "callbacks.knn.k", "views.0.operations.0.scale.0"} <= keys  # fmt: skip


def test_british_spellings_of_version_0_1_are_still_read(tmp_path):
    config = from_text(tmp_path, "method: byol\ndata: {name: images, root: ., normalisation: measured}\n")
    assert config.data.options.normalization == "measured"
    assert "normalisation" not in config.plain()["data"]
    stored = from_text(tmp_path, "method: {name: byol, predictor: {weight_standardisation: true}}\ndata: shapes\n")
    assert stored.method.options.predictor.weight_standardization
    assert WrappedOptions.parse({"split": "labelled"}).split == "labeled"
