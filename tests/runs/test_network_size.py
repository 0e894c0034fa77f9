"""The size of a network is known without memory for it, and a file cannot ask for more than it holds."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from run_helpers import method_config

from sslcli.contracts.errors import UserError
from sslcli.contracts.method import Progress
from sslcli.runs.backbone_file import load_backbone_file, save_backbone
from sslcli.runs.network_size import state_bytes, training_bytes, without_memory
from sslcli.training.setup import build


@pytest.mark.parametrize("case", ["moco_v2", "byol", "swav", "dino", "barlow_twins"])
def test_a_network_without_memory_has_the_size_of_the_real_one(case):
    session = build(method_config(case))
    config, info = session.config, session.info
    modules = set(sys.modules)
    backbone, method = config.backbone, config.method
    empty = without_memory(lambda: method.cls(backbone.cls.build(backbone.options, 3, 16), method.options, info))
    assert empty is not None
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert state_bytes(empty) == state_bytes(session.method)
    assert training_bytes(empty) == training_bytes(session.method) > state_bytes(empty)
    assert not any(name.startswith("sympy") for name in set(sys.modules) - modules)


def test_torchs_generator_is_not_changed():
    before = torch.get_rng_state()
    assert without_memory(lambda: torch.nn.Linear(10**6, 10**6)) is not None
    assert without_memory(lambda: torch.nn.Linear(int(torch.ones(1).sum()), 1)) is None  # needs a value
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(("width", "said"), [(1_000_000, "the card is wrong"), (10**12, "too large for any memory")])
def test_a_card_cannot_ask_for_a_network_that_the_file_does_not_hold(tmp_path, width, said):
    session = build(method_config("simclr"))
    card = session.card(Progress(0, session.info.total_steps, session.info.steps_per_epoch))
    save_backbone(tmp_path / "good.safetensors", session.method.backbone, card)
    assert load_backbone_file(tmp_path / "good.safetensors").card == card
    hostile = dataclasses.replace(card, backbone={**card.backbone, "width": width})
    save_backbone(tmp_path / "bad.safetensors", session.method.backbone, hostile)
    with pytest.raises(UserError, match=rf"bad\.safetensors: its card describes a network.*{said}"):
        load_backbone_file(tmp_path / "bad.safetensors")


def test_a_network_or_views_larger_than_the_free_memory_are_refused(monkeypatch):
    monkeypatch.setattr("sslcli.training.network.free_memory", lambda device: 100_000)
    with pytest.raises(UserError, match=r"parameters take .* in training, and 0\.1 MiB of memory is free on cpu: set"):
        build(method_config("simclr"))
    monkeypatch.setattr("sslcli.training.network.free_memory", lambda device: 10_000)
    with pytest.raises(UserError, match=r"views\.size: the views of a micro-batch of 8 images take .*views\.count"):
        build(method_config("simclr"))
