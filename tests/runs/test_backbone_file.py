"""Backbone files are written whole or not at all, a changed byte is detected, and a file alone is enough to load it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sslcli.contracts.errors import UserError
from sslcli.contracts.export import BackboneCard
from sslcli.plugins import load
from sslcli.runs import files
from sslcli.runs.backbone_file import load_backbone_file, save_backbone

OPTIONS = {"stem": "small", "width": 8}


def card(**changes):
    options = {"name": "resnet18", **OPTIONS}
    whole = BackboneCard(options, 3, 16, 64, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), "simclr", "shapes", 7, 0.5, "0.1.0")
    return dataclasses.replace(whole, **changes)


@pytest.fixture(scope="module")
def backbone():
    cls = load("backbones", "resnet18")
    torch.manual_seed(0)
    built = cls.build(cls.Options.parse(OPTIONS), 3, 16)
    built(torch.randn(4, 3, 16, 16))  # changes the statistics of the norms
    return built


@pytest.fixture
def path(tmp_path, backbone):
    save_backbone(tmp_path / "b.safetensors", backbone, card())
    return tmp_path / "b.safetensors"


def assert_refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        load_backbone_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_backbone_is_loaded_as_it_was_saved(path, backbone):
    state = torch.get_rng_state()
    loaded = load_backbone_file(path)
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.card == card()
    assert loaded.run is None
    assert not loaded.backbone.training
    expected = backbone.state_dict()
    assert list(loaded.backbone.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.backbone.state_dict().items())


def test_any_program_that_reads_safetensors_gets_the_exported_names_and_no_pickle(path, backbone):
    assert set(load_file(path)) == set(backbone.export_state()[0])
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    document = json.loads(json.loads(whole[8 : 8 + header])["__metadata__"]["sslcli"])
    assert document["card"]["backbone"] == {"name": "resnet18", **OPTIONS}


def test_the_digest_depends_on_weights_and_card_but_not_on_the_memory_format(tmp_path, path, backbone):
    first = load_backbone_file(path).digest
    assert len(first) == 64
    save_backbone(tmp_path / "later.safetensors", backbone, card(step=8))
    assert load_backbone_file(tmp_path / "later.safetensors").digest != first
    twin = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    save_backbone(tmp_path / "twin.safetensors", twin, card())
    assert load_backbone_file(tmp_path / "twin.safetensors").digest == first
    assert twin.network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(path, backbone, monkeypatch):
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_backbone(path, backbone, card(step=8))
    with pytest.raises(UserError, match="cannot be written"):
        save_backbone(path.parent / "nowhere" / "b.safetensors", backbone, card())
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_shared_memory_is_refused_with_the_names_of_both_tensors(tmp_path, backbone):
    tied = copy.deepcopy(backbone)
    tied.network.layer1[0].conv2.weight = tied.network.layer1[0].conv1.weight
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight and layer1\.0\.conv2\.weight share memory"):
        save_backbone(tmp_path / "tied.safetensors", tied, card())
    assert os.listdir(tmp_path) == []


def test_damaged_files_are_refused(path):
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    method = whole.index(b"simclr")
    flipped = [0, 3, 8, 20, header // 2, header, header + 9, header + 4000, len(whole) - 1, *range(method, method + 6)]
    for index in flipped:
        changed = bytearray(whole)
        changed[index] ^= 1
        path.write_bytes(changed)
        assert_refused(path, None)
    for length in (0, 7, 300, -5):
        path.write_bytes(whole[:length])
        assert_refused(path, "is damaged or ")


def test_other_files_are_refused_in_one_line(tmp_path):
    assert_refused(tmp_path / "missing.safetensors", "no such file")
    assert_refused(tmp_path, "is a directory")
    file = tmp_path / "file.safetensors"
    file.write_text("not weights\nat all")
    assert_refused(file, "no safetensors file|not a safetensors file")
    save_file({"x": torch.zeros(2)}, file)
    assert_refused(file, "was not written by ssl")
    files.write(file, {"x": torch.zeros(2)}, {"step": 3})
    assert_refused(file, "has no backbone card")
    files.write(file, {"x": torch.zeros(2)}, {"card": {"sslcli": "9.0"}})
    assert_refused(file, r"sslcli 9\.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "resnet81"}}, "unknown backbone 'resnet81'.*resnet18"),
        ({"backbone": {"name": "resnet18", "stem": "tiny"}}, "rejects the card's options"),
        ({"backbone": {"name": "resnet18", "stem": "small", "width": 16}}, "do not fit"),
        ({"backbone": {}}, "names no backbone"),
        ({"image_size": 4}, "at least 8 pixels"),
    ],
)
def test_a_card_that_does_not_fit_the_weights_is_refused(path, backbone, changes, message):
    save_backbone(path, backbone, card(**changes))
    assert_refused(path, message)
