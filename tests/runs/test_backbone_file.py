"""A backbone file is whole or not there, tells when a byte has changed, and needs nothing but itself."""

from __future__ import annotations

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
    built(torch.randn(4, 3, 16, 16))  # norms with statistics of their own
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


def test_what_is_loaded_is_what_was_saved(path, backbone):
    state = torch.get_rng_state()
    loaded = load_backbone_file(path)
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.card == card()
    assert loaded.run is None
    assert not loaded.backbone.training
    expected = backbone.state_dict()
    assert list(loaded.backbone.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.backbone.state_dict().items())


def test_any_reader_of_safetensors_gets_the_exported_names(path, backbone):
    assert set(load_file(path)) == set(backbone.export_state()[0])


def test_the_digest_follows_weights_and_card(tmp_path, path, backbone):
    first = load_backbone_file(path).digest
    save_backbone(tmp_path / "again.safetensors", backbone, card())
    save_backbone(tmp_path / "later.safetensors", backbone, card(step=8))
    assert len(first) == 64
    assert load_backbone_file(tmp_path / "again.safetensors").digest == first
    assert load_backbone_file(tmp_path / "later.safetensors").digest != first


def test_saving_leaves_no_other_file_and_honors_the_umask(tmp_path, path, backbone):
    assert os.listdir(tmp_path) == ["b.safetensors"]
    before = os.umask(0o027)
    try:
        save_backbone(path, backbone, card())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(path, backbone, monkeypatch):
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_backbone(path, backbone, card(step=8))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_missing_folder_is_a_user_error(tmp_path, backbone):
    with pytest.raises(UserError, match="cannot be written"):
        save_backbone(tmp_path / "nowhere" / "b.safetensors", backbone, card())


def test_channels_last_weights_are_written_as_any_others(tmp_path, path, backbone):
    cls = load("backbones", "resnet18")
    twin = cls.build(cls.Options.parse(OPTIONS), 3, 16)
    twin.load_state_dict(backbone.state_dict())
    twin.to(memory_format=torch.channels_last)
    save_backbone(tmp_path / "twin.safetensors", twin, card())
    assert load_backbone_file(tmp_path / "twin.safetensors").digest == load_backbone_file(path).digest
    assert twin.network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_shared_memory_is_refused_naming_both_tensors(tmp_path):
    cls = load("backbones", "resnet18")
    tied = cls.build(cls.Options.parse(OPTIONS), 3, 16)
    tied.network.layer1[0].conv2.weight = tied.network.layer1[0].conv1.weight
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight and layer1\.0\.conv2\.weight share memory"):
        save_backbone(tmp_path / "tied.safetensors", tied, card())
    assert os.listdir(tmp_path) == []


def test_any_flipped_byte_is_found(path):
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    places = [0, 3, 8, 20, header // 2, header, header + 9, header + 4000, len(whole) - 1]
    places += list(range(whole.index(b"simclr"), whole.index(b"simclr") + 6))
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(UserError) as caught:
            load_backbone_file(path)
        assert "\n" not in str(caught.value), place


@pytest.mark.parametrize("length", [0, 7, 300, -5])
def test_a_file_that_was_cut_short_is_refused(path, length):
    path.write_bytes(path.read_bytes()[:length])
    assert_refused(path, "damaged or no safetensors file")


def test_what_is_no_backbone_file_is_refused_in_one_line(tmp_path):
    assert_refused(tmp_path / "missing.safetensors", "no such file")
    assert_refused(tmp_path, "is a directory")
    text = tmp_path / "text.safetensors"
    text.write_text("not weights\nat all")
    assert_refused(text, "no safetensors file")
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    assert_refused(other, "was not written by ssl")
    bare = tmp_path / "bare.safetensors"
    files.write(bare, {"x": torch.zeros(2)}, {"step": 3})
    assert_refused(bare, "no backbone's card")
    foreign = tmp_path / "foreign.safetensors"
    files.write(foreign, {"x": torch.zeros(2)}, {"card": {"sslcli": "9.0"}})
    assert_refused(foreign, r"sslcli 9\.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "resnet81"}}, "unknown backbone 'resnet81'.*resnet18"),
        ({"backbone": {"name": "resnet18", "stem": "tiny"}}, "refuses the card's options"),
        ({"backbone": {"name": "resnet18", "stem": "small", "width": 16}}, "do not fit"),
        ({"backbone": {}}, "names no backbone"),
        ({"image_size": 4}, "at least 8 pixels"),
    ],
)
def test_a_card_that_does_not_lead_to_the_weights_is_refused(path, backbone, changes, message):
    save_backbone(path, backbone, card(**changes))
    assert_refused(path, message)


def test_nothing_in_the_file_is_a_pickle(path):
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    document = json.loads(json.loads(whole[8 : 8 + header])["__metadata__"]["sslcli"])
    assert document["card"]["backbone"] == {"name": "resnet18", **OPTIONS}
