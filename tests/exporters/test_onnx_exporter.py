"""The exporter `onnx`: onnxruntime computes torch's features for any batch size."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from export_helpers import BACKBONES, export, features_of, pasted, scaled, trained, wanted

import sslcli
from sslcli.contracts.errors import SslError, UserError
from sslcli.exporters.network import Network
from sslcli.exporters.onnx import ONNXExporter
from sslcli.testing import check_exporter


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


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


@pytest.mark.parametrize(("name", "options", "size"), BACKBONES)
def test_onnxruntime_gives_the_trained_features_for_any_batch_size(
    onnx, tmp_path, monkeypatch, name, options, size, messages
):
    it = trained(name, options, size)
    exported = export(ONNXExporter, it, tmp_path / "it's one.onnx")
    assert "checked, onnxruntime's features differ from torch's by" in messages[-1]
    model = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)["model"]
    for count in (1, 2, 5):
        images = torch.randn(count, 3, size, size)
        torch.testing.assert_close(features_of(model, images), wanted(it, images), rtol=1e-4, atol=1e-4)


def test_normalize_takes_images_between_0_and_1(onnx, tmp_path, monkeypatch):
    it, images = trained("cifar_resnet20", {"width": 4}), torch.rand(3, 3, 16, 16)
    exported = export(ONNXExporter, it, tmp_path / "b.onnx", normalize=True)
    model = pasted(exported.how_to_load, tmp_path, monkeypatch)["model"]
    torch.testing.assert_close(features_of(model, images), wanted(it, scaled(it, images)), rtol=1e-4, atol=1e-4)


def test_the_model_is_valid_and_carries_what_one_needs_to_use_it(onnx, tmp_path):
    path = tmp_path / "b.onnx"
    export(ONNXExporter, trained("cifar_resnet20", {"width": 4}), path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    found = {each.key: each.value for each in model.metadata_props}
    assert json.loads(found["mean"]) == [0.4, 0.5, 0.6]
    assert (found["method"], found["image_size"], found["normalize"]) == ("simclr", "16", "false")
    (images,), (features,) = model.graph.input, model.graph.output
    assert (images.name, features.name) == ("images", "features")
    shape = images.type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [each.dim_value for each in shape[1:]] == [3, 16, 16]


def test_nothing_is_printed_where_the_lines_go(onnx, tmp_path, capfd):
    export(ONNXExporter, trained("cifar_resnet20", {"width": 4}), tmp_path / "b.onnx")
    assert capfd.readouterr().out == ""


def test_a_model_with_other_features_is_not_written(onnx, tmp_path, monkeypatch):
    other = trained("cifar_resnet20", {"width": 4})
    with torch.no_grad():
        other.backbone.bn1.bias.add_(0.5)
    wrong = ONNXExporter(ONNXExporter.Options())._convert(Network(other, normalize=False), other)
    monkeypatch.setattr(ONNXExporter, "_convert", lambda self, network, it: wrong)
    with pytest.raises(SslError, match="not written: its features differ from torch's by"):
        export(ONNXExporter, trained("cifar_resnet20", {"width": 4}), tmp_path / "b.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_the_model_is_written_and_said_to_be_unchecked(onnx, tmp_path, without, messages):
    without("onnxruntime")
    export(ONNXExporter, trained("cifar_resnet20", {"width": 4}), tmp_path / "b.onnx")
    assert "not checked, onnxruntime is not installed: pip install 'sslcli[onnx]'" in messages[-1]
    assert (tmp_path / "b.onnx").is_file()


def test_torch_s_older_exporter_stands_in_where_the_newer_one_fails(onnx, tmp_path, monkeypatch, messages):
    def fail(self, network, it):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(ONNXExporter, "_by_program", fail)
    it = trained("resnet18")
    export(ONNXExporter, it, tmp_path / "b.onnx")
    assert "checked" in messages[-1]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_line_with_the_command(tmp_path, without, missing, monkeypatch):
    if missing == "onnxscript":
        pytest.importorskip("onnx")
        monkeypatch.setattr(ONNXExporter, "_by_script", ONNXExporter._by_program)
    without(missing)
    with pytest.raises(UserError, match=rf"needs the package {missing}: pip install 'sslcli\[onnx\]'") as caught:
        export(ONNXExporter, trained(), tmp_path / "b.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_keeps_its_contract(onnx):
    check_exporter(ONNXExporter, trained=trained("cifar_resnet20", {"width": 4}))


def test_load_backbone_says_who_loads_an_onnx_model(tmp_path):
    (tmp_path / "b.onnx").write_bytes(b"a model")
    with pytest.raises(UserError, match=r"is an ONNX model, which onnxruntime\.InferenceSession loads"):
        sslcli.load_backbone(tmp_path / "b.onnx")
