"""Images → features; the backbone is unchanged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from evaluation_helpers import InMemory, TinyBackbone, trained

from sslcli.contracts.errors import UserError
from sslcli.data.subset import Subset
from sslcli.evaluation.extraction import extract_features, feature_blocks, normalizer, read_blocks
from sslcli.evaluation.subject import FrozenSubject, require_parts

CPU = torch.device("cpu")
LABELS = torch.arange(23) % 3


INPUTS = SimpleNamespace(device=CPU, image_size=8, normalize=normalizer((0.5,) * 3, (0.25,) * 3, CPU))


def extract(backbone, images, batch_size=8):
    return extract_features(backbone, images, INPUTS, batch_size)


def test_the_backbone_is_bitwise_unchanged_and_every_module_keeps_its_mode():
    backbone = TinyBackbone().train()
    backbone.norm.eval()  # a frozen norm within a network in training
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    extract(backbone, InMemory(LABELS, 23))
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert [backbone.training, backbone.conv.training, backbone.norm.training] == [True, True, False]
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(RuntimeError):
        extract(backbone, torch.zeros(2, 5, 8, 8, dtype=torch.uint8))
    assert [backbone.training, backbone.conv.training, backbone.norm.training] == [True, True, False]


def test_features_are_those_of_a_forward_in_eval_whatever_the_batch_size():
    backbone, data = TinyBackbone().train(), InMemory(LABELS, 23)
    whole = extract(backbone, data, batch_size=23)
    parts = extract(backbone, data, batch_size=5)
    torch.testing.assert_close(whole.features, parts.features, rtol=0, atol=1e-5)
    assert torch.equal(whole.labels, LABELS)
    assert whole.features.dtype == torch.float32
    assert not whole.features.is_inference()  # evaluators may put a head with gradients on top
    expected = backbone.eval()((data.pixels.float() / 255 - 0.5) / 0.25).pooled
    torch.testing.assert_close(whole.features, expected, rtol=1e-5, atol=1e-5)


def test_a_tensor_a_resident_and_a_streamed_data_set_give_the_same():
    backbone = TinyBackbone()
    resident, streamed = InMemory(LABELS, 23), InMemory(LABELS, 23, resident=False)
    expected = extract(backbone, resident.pixels)
    assert expected.labels is None
    assert torch.equal(extract(backbone, resident).features, expected.features)
    assert torch.equal(extract(backbone, streamed).features, expected.features)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_features_in_half_precision_arrive_as_float32_and_near(precision):
    backbone, data = TinyBackbone(), InMemory(LABELS, 23)
    found = torch.cat([features for features, _ in feature_blocks(backbone, data, INPUTS, 8, precision)])
    assert found.dtype == torch.float32
    exact = extract(backbone, data).features
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)


def test_unreadable_images_are_left_out_with_their_labels_up_to_one_in_a_hundred():
    data = InMemory(torch.arange(200) % 3, 200, resident=False)
    data.damaged = {7, 150}
    backbone = TinyBackbone()
    found = extract(backbone, data, batch_size=64)
    keep = torch.tensor([i not in data.damaged for i in range(200)])
    assert torch.equal(found.labels, data.labels[keep])
    torch.testing.assert_close(found.features, extract(backbone, data.pixels[keep]).features, rtol=0, atol=1e-5)
    data.damaged = {7, 8, 150}
    with pytest.raises(UserError, match=r"more than 1% of the 200 images.*7\.png: cut short") as caught:
        extract(backbone, data, batch_size=64)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_resized_and_those_of_the_right_size_are_not():
    data = InMemory(LABELS, 23, size=20, resident=True)
    ((images, indices),) = read_blocks(data, 8)
    assert images.shape == (23, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert indices.tolist() == list(range(23))
    assert torch.equal(next(read_blocks(data, 20))[0], data.pixels)


def test_a_subject_computes_features_once_and_normalizes_with_the_card():
    given = trained()
    it = FrozenSubject(given, InMemory(LABELS, 23), None, CPU, batch_size=10)
    assert all(p.requires_grad for p in given.backbone.parameters())
    assert not any(p.requires_grad for p in it.backbone.parameters())
    first = it.features("train")
    calls = it.backbone.calls
    assert it.features("train") is first
    assert it.backbone.calls == calls == 3
    images = it.dataset("train").pixels[:1]
    expected = (images.float() / 255 - torch.tensor((0.4, 0.5, 0.6)).view(3, 1, 1)) / torch.tensor(
        (0.2, 0.2, 0.3)
    ).view(3, 1, 1)
    torch.testing.assert_close(it.normalize(images), expected, rtol=1e-5, atol=1e-5)
    about = {"name": "memory", "images": 23, "split": "train", "limit": None, "mean": None, "std": None}
    assert it.describe()["train"] == {**about, "unreadable": 0}
    assert it.describe()["digest"] == "abc"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (InMemory(LABELS, 23), None, "no labeled images for the part 'eval'"),
        (InMemory(None, 5), InMemory(LABELS, 23, split="test"), "has no labels"),
        (InMemory(LABELS, 23), InMemory(LABELS % 2, 23, split="test"), "different classes"),
        (InMemory(LABELS, 23), InMemory(LABELS, 23), "are the same"),
        (InMemory(LABELS, 23), Subset(InMemory(LABELS, 23), torch.arange(5)), "are the same"),
    ],
)
def test_parts_that_cannot_be_used_are_refused_in_one_line(train, test, message):
    with pytest.raises(UserError, match=message) as caught:
        require_parts(FrozenSubject(trained(), train, test, CPU))
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_every_block_has_one_size_and_is_copied_without_waiting():
    cuda, sizes = torch.device("cuda"), []
    backbone, images = TinyBackbone(), torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8)
    expected = extract_features(backbone, images, INPUTS, 8).features
    inputs = SimpleNamespace(device=cuda, image_size=8, normalize=normalizer((0.5,) * 3, (0.25,) * 3, cuda))
    backbone = backbone.cuda()
    backbone.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    for given in (images, images.pin_memory(), images.cuda()):
        extract_features(backbone, given, inputs, 8)  # what is created once may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = extract_features(backbone, given, inputs, 8).features
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    assert set(sizes) == {8}
