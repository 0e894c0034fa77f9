"""Every command of docs/probes.md is one that the options take, and means what stands above it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sslcli.config.options import overrides_as_data
from sslcli.evaluation.selection import choose_evaluators
from sslcli.evaluators.linear.protocols import PROTOCOLS
from sslcli.evaluators.probes.training import Training

PAGE = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
LINEAR = PAGE.partition("## `finetune`")[0]
COMMANDS = re.findall(r"^ssl eval RUN .*$", PAGE.replace("\\\n", ""), flags=re.MULTILINE)


def options_of(command):
    words = shlex.split(command)
    return choose_evaluators(words[4], overrides_as_data(words[5:]))[words[4]].build().evaluator.options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_taken(command):
    options = options_of(command)
    if "--method knn" not in command:
        Training.of(options, 100_000).schedule_for(options.lr[0], 100)


def test_every_published_evaluation_has_its_row():
    rows = {line.split("`")[1]: line for line in LINEAR.splitlines() if line.startswith("| `")}
    assert rows.keys() == PROTOCOLS.keys()
    for name, row in rows.items():
        options = PROTOCOLS[name].options
        numbers = [float(number) for number in re.findall(r"[\d.]+", row.split("|")[2].replace("B/256", ""))]
        rates = options["lr"] if isinstance(options["lr"], list) else [options["lr"]]
        assert numbers == [*rates, options["batch_size"], options["epochs"]]
        assert ("B/256" in row) is (options["optimizer"].get("scale_lr") == "batch/256") or name == "dino_resnet"
        assert ("bicubic" in row) is (options["interpolation"] == "bicubic")
        assert ("weight decay 1e-6" in row) is (options["optimizer"]["weight_decay"] == 1e-6)


def test_the_settings_are_the_published_ones():
    simclr, swav, *_ = (options_of(command) for command in COMMANDS if "--method finetune" in command)
    assert Training.of(simclr, 100_000).schedule_for(simclr.lr[0], 10).base == pytest.approx(0.1)
    assert (simclr.share, simclr.epochs, simclr.optimizer["nesterov"]) == (0.1, 30, True)
    steps = [Training.of(swav, 100_000).schedule_for(0.02, 10)(step) for step in (0, 119, 120, 160)]
    assert steps == pytest.approx([0.02, 0.02, 0.004, 0.0008])
    assert (swav.head_lr, swav.optimizer["nesterov"]) == (5.0, False)


def test_the_table_of_maes_and_deits_settings_is_what_they_set():
    mae, deit = (options_of(f"ssl eval RUN --method finetune protocol={name}") for name in ("mae", "deit"))
    rows = dict(re.findall(r"^\| (`[a-z_`, ]+`) \| (.*) \|.*\|$", PAGE, flags=re.MULTILINE))
    assert rows["`epochs`, `batch_size`"] == f"{mae.epochs}, {mae.batch_size} | {deit.epochs}, {deit.batch_size}"
    assert rows["`mixup`, `cutmix`"] == ".8, 1 | .8, 1"
    shared = {(each.mixup, each.cutmix, each.drop_path, each.label_smoothing) for each in (mae, deit)}
    assert shared == {(0.8, 1, 0.1, 0.1)}
    assert mae.views == deit.views
    assert rows["`layer_decay`"] == f"{str(mae.layer_decay)[1:]} | –"
    assert rows["`ema_decay`"] == f"– | {str(deit.ema_decay)[1:]}"
