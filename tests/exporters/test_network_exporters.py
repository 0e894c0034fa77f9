"""The exporters `torch-export` and `onnx`: what the printed lines load gives torch's features for any batch size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
import torch
from export_helpers import BACKBONES, expected, export, features_of, pasted, scaled, simple, trained
from torch import nn

import sslcli
from sslcli.contracts.backbone import Backbone, BackboneSpec, Features
from sslcli.contracts.errors import SslError, UserError
from sslcli.exporters import network
from sslcli.exporters.onnx import ONNXExporter
from sslcli.exporters.torch_export import TorchExporter
from sslcli.testing import check_exporter

SMALL = ("cifar_resnet20", {"width": 4})


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


@pytest.fixture(params=[TorchExporter, ONNXExporter])
def exporter(request):
    if request.param is ONNXExporter:
        request.getfixturevalue("onnx")
    return request.param


@pytest.fixture
def without(monkeypatch):
    """Returns a function that makes packages look as if they were not installed."""

    def hide(*packages):
        real = importlib.import_module

        def pretend(name, *rest, **more):
            if name in packages:
                raise ImportError(name)
            return real(name, *rest, **more)

        monkeypatch.setattr(importlib, "import_module", pretend)

    return hide


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [BACKBONES[1], *(pytest.param(*each, marks=pytest.mark.slow) for each in (BACKBONES[0], *BACKBONES[2:]))],
)
def test_the_printed_lines_give_the_trained_features(
    exporter, tmp_path, monkeypatch, messages, capfd, name, options, size
):
    it = trained(name, options, size)
    exported = export(exporter, it, tmp_path / f"it's one{exporter.suffix}")
    assert "checked, its features differ from torch's by" in messages[-1]
    assert capfd.readouterr().out == ""  # stdout is for the lines
    model = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)["model"]
    for count in (1, 2, 5):
        images = torch.randn(count, 3, size, size)
        torch.testing.assert_close(features_of(model, images), expected(it, images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_normalize_takes_images_between_0_and_1(exporter, tmp_path, monkeypatch):
    it, images = trained(*SMALL), torch.rand(3, 3, 16, 16)
    exported = export(exporter, it, tmp_path / f"b{exporter.suffix}", normalize=True)
    assert "in [0, 1]\n" in exported.how_to_load
    model = pasted(exported.how_to_load, tmp_path, monkeypatch)["model"]
    torch.testing.assert_close(features_of(model, images), expected(it, scaled(it, images)), rtol=1e-4, atol=1e-4)


def test_a_network_with_other_features_is_not_written(exporter, tmp_path, monkeypatch):
    def other(self, it):
        it = simple()
        with torch.no_grad():
            it.backbone.norm.bias.add_(0.5)
        return network.Network(it, normalize=False)

    check = network.check_network
    right = network.Network(simple(), normalize=False)
    monkeypatch.setattr(exporter, "network", other)
    monkeypatch.setattr(network, "check_network", lambda path, loaded, _, card: check(path, loaded, right, card))
    with pytest.raises(SslError, match="not written: its features differ from torch's by"):
        export(exporter, simple(), tmp_path / f"b{exporter.suffix}")
    assert list(tmp_path.iterdir()) == []


HEADER = {"method": "simclr", "image_size": "16", "backbone_package": "sslcli", "normalize": "false"}


def test_the_program_has_all_that_its_use_takes(tmp_path):
    found = dict.fromkeys(["mean", *HEADER], "")
    export(TorchExporter, simple(), tmp_path / "b.pt2")
    torch.export.load(tmp_path / "b.pt2", extra_files=found)
    text = {name: each.decode() if isinstance(each, bytes) else each for name, each in found.items()}
    assert {name: text[name] for name in HEADER} == HEADER
    assert json.loads(text["mean"]) == [0.4, 0.5, 0.6]


def test_the_onnx_model_is_valid_and_has_all_that_its_use_takes(onnx, tmp_path):
    export(ONNXExporter, simple(), tmp_path / "b.onnx")
    model = onnx.load(tmp_path / "b.onnx")
    onnx.checker.check_model(model, full_check=True)
    found = {each.key: each.value for each in model.metadata_props}
    assert {name: found[name] for name in HEADER} == HEADER
    assert json.loads(found["mean"]) == [0.4, 0.5, 0.6]
    (images,), (features,) = model.graph.input, model.graph.output
    assert (images.name, features.name) == ("images", "features")
    shape = images.type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [each.dim_value for each in shape[1:]] == [3, 16, 16]


@pytest.mark.slow
def test_the_onnx_exporter_keeps_its_contract(onnx):
    check_exporter(ONNXExporter, trained=trained(*SMALL))


@pytest.mark.slow
def test_a_program_is_loaded_without_sslcli(tmp_path):
    lines = export(TorchExporter, trained(), tmp_path / "b.pt2").how_to_load
    code = f"import sys; sys.modules['sslcli'] = None\n{lines}\nprint(model(torch.zeros(3, 3, 16, 16)).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([3, 64])\n", done.stderr


class Untraceable(Backbone):
    """What it does depends on the values of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = BackboneSpec(4)
        self.layer = nn.Linear(3, 4)

    @classmethod
    def build(cls, options, channels, image_size):
        return cls()

    def forward(self, x, mask=None):
        pixels = x.mean(dim=(2, 3))
        return Features(self.layer(pixels if float(pixels.sum()) > 0 else -pixels))


def test_what_torch_cannot_trace_and_another_suffix_are_one_line_and_no_file(tmp_path):
    it = trained()
    it.backbone = Untraceable().eval()
    with pytest.raises(UserError, match=r"torch\.export cannot trace it") as caught:
        export(TorchExporter, it, tmp_path / "b.pt2")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"needs a name that ends in \.pt2"):
        export(TorchExporter, trained(), tmp_path / "b.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_onnxruntime_the_model_is_written_unchecked(onnx, tmp_path, without, messages):
    without("onnxruntime")
    export(ONNXExporter, trained(*SMALL), tmp_path / "b.onnx")
    assert "not checked, onnxruntime is not installed: pip install 'sslcli[onnx]'" in messages[-1]
    assert (tmp_path / "b.onnx").is_file()


def test_torchs_older_exporter_is_used_where_the_newer_one_fails(onnx, tmp_path, monkeypatch, messages):
    def fail(self, network, it):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(ONNXExporter, "_by_program", fail)
    export(ONNXExporter, simple(), tmp_path / "b.onnx")
    assert "checked" in messages[-1]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_reported_in_one_line_with_the_command(tmp_path, without, missing, monkeypatch):
    if missing == "onnxscript":
        pytest.importorskip("onnx")
        monkeypatch.setattr(ONNXExporter, "_by_script", ONNXExporter._by_program)
    without(missing)
    with pytest.raises(UserError, match=rf"needs the package {missing}: pip install 'sslcli\[onnx\]'") as caught:
        export(ONNXExporter, trained(), tmp_path / "b.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".pt2", r"is an exported program, which torch\.export\.load\(\.\.\.\)\.module\(\)"),
        (".onnx", r"is an ONNX model, which onnxruntime\.InferenceSession loads"),
    ],
)
def test_load_backbone_says_how_another_file_is_loaded(tmp_path, suffix, message):
    (tmp_path / f"b{suffix}").write_bytes(b"a network")
    with pytest.raises(UserError, match=message):
        sslcli.load_backbone(tmp_path / f"b{suffix}")
