"""Every command of docs/probes.md is one that the options take, and means what stands above it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sslcli.config.options import parse_options
from sslcli.evaluators.probes.training import Training
from sslcli.plugins import load

PAGE = (Path(__file__).parents[2] / "docs" / "probes.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ssl eval RUN .*$", PAGE.replace("\\\n", ""), flags=re.MULTILINE)


def options_of(command):
    words = shlex.split(command)
    return parse_options(load("evaluators", words[4]).Options, words[5:], words[4])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_taken(command):
    options = options_of(command)
    Training.of(options, 100_000).schedule_for(options.lr[0], 100)


def test_the_settings_are_the_published_ones():
    moco, simsiam, simclr, swav, _ = map(options_of, COMMANDS)
    steps = [Training.of(moco, 100_000).schedule_for(30.0, 10)(step) for step in (0, 599, 600, 800)]
    assert steps == pytest.approx([30, 30, 3, 0.3])
    assert Training.of(simsiam, 100_000).schedule_for(simsiam.lr[0], 10).base == pytest.approx(1.6)
    assert Training.of(simclr, 100_000).schedule_for(simclr.lr[0], 10).base == pytest.approx(0.1)
    assert (simclr.share, simclr.epochs, simclr.optimizer["nesterov"]) == (0.1, 30, True)
    steps = [Training.of(swav, 100_000).schedule_for(0.02, 10)(step) for step in (0, 119, 120, 160)]
    assert steps == pytest.approx([0.02, 0.02, 0.004, 0.0008])
    assert (swav.head_lr, swav.optimizer["nesterov"]) == (5.0, False)
