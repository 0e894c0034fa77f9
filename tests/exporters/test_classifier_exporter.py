"""`ssl export classifier`: a classifier of `ssl eval` gives images the classes that it gave there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from export_helpers import expected, export, pasted, scaled
from export_helpers import trained as network
from PIL import Image
from run_helpers import done, refused
from torch import Tensor

import sslcli
from sslcli.augmentations.resize import Resize
from sslcli.contracts.errors import UserError
from sslcli.contracts.export import Classifier, Trained
from sslcli.data.decode import decode
from sslcli.evaluation.classifier import kept_in, load_classifier, save_classifier
from sslcli.evaluation.feature import FeatureBackbone
from sslcli.exporters.classifier import IMPORT_PIL, ClassifierExporter, preparation
from sslcli.plugins import load

DATA = {"name": "shapes", "count": 200, "size": 16}
CONFIG = """\
method: {name: simclr, projector: {output_dim: 8}}
backbone: {name: resnet18, stem: small, width: 4}
data: {name: shapes, count: 200, size: 16}
schedule: constant
training: {epochs: 1, batch_size: 50, device: cpu, compile: none}
callbacks: {knn: null, online_probe: null, tensorboard: null, progress: null}
"""
OPTIONS = {
    "linear": ["epochs=3"],
    "logistic": ["C=1", "iterations=20"],
    "finetune": ["epochs=1", "batch_size=50", "ema_decay=0.5"],
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/a`, with a result of each evaluator that trains a classifier, and one of kNN."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "c.yaml").write_text(CONFIG)
    done("train", folder / "c.yaml", "--output", folder / "runs" / "a")
    for method, options in {**OPTIONS, "knn": ["k=[5]"]}.items():
        done("eval", folder / "runs" / "a", "--method", method, *options)
    return folder


@pytest.fixture
def folder(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is the working directory."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The test images, their labels and the names of the classes."""
    cls = load("datasets", "shapes")
    options = cls.labeled(cls.Options.parse({k: v for k, v in DATA.items() if k != "name"}), "eval")
    data = cls.open(options)
    return data.images(), data.labels, data.info.classes


def guess(lines: str, image: Tensor, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> str:
    """What the printed lines print for an image."""
    elsewhere.mkdir(exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(elsewhere / "photograph.png")
    blank = next(word for word in lines.split("image = ")[1:] if word.startswith("Image.new")).split("  #")[0]
    capsys.readouterr()
    pasted(lines.replace(blank, "Image.open('photograph.png')"), elsewhere, monkeypatch)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("method", OPTIONS)
def test_a_classifier_is_kept_and_has_the_accuracy_of_its_result(folder: Path, method: str) -> None:
    result = json.loads((folder / f"runs/a/eval/{method}.json").read_text())
    assert result["classifier"]["file"] == f"{method}.safetensors"
    pixels, labels, classes = images()
    classifier = sslcli.load_classifier(f"runs/a/eval/{method}.json")
    assert classifier.classes == classes
    with torch.no_grad():
        right = classifier(pixels.float() / 255).argmax(dim=1) == labels
    assert float(right.double().mean()) == pytest.approx(result["metrics"]["top1"], abs=1e-9)
    if method != "finetune":
        assert (folder / f"runs/a/eval/{method}.safetensors").stat().st_size < 12_000


@pytest.mark.parametrize("method", ["linear", "finetune"])
@pytest.mark.parametrize(
    "suffix", ["safetensors", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pt2", "onnx"))]
)
def test_the_printed_lines_name_the_class_of_an_image(
    folder: Path, method: str, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    if suffix == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sslcli[onnx]'")
    result = f"runs/a/eval/{method}.json"
    pixels, _, classes = images()
    with torch.no_grad():
        predicted = sslcli.load_classifier(result)(pixels.float() / 255).argmax(dim=1)
    lines, err = done("export", "classifier", result, "--output", f"it's {method}.{suffix}")
    assert f"wrote it's {method}.{suffix} (" in err
    elsewhere = folder / "elsewhere"
    capsys.readouterr()
    pasted(lines.strip(), elsewhere, monkeypatch)  # as they are printed
    assert capsys.readouterr().out.strip() in classes
    for index in (0, 1, 2):
        found = guess(lines.strip(), pixels[index], elsewhere, monkeypatch, capsys)
        assert found == classes[int(predicted[index])]


def test_without_a_result_the_newest_one_is_taken(folder: Path) -> None:
    _, err = done("export", "classifier")
    assert err.splitlines()[0] == "using runs/a/eval/finetune.json, of the newest run that has a classifier"
    shutil.copytree("runs/a", "runs/b")  # newer, and without
    shutil.rmtree("runs/b/eval")
    (folder / "runs/b/metrics.jsonl").touch()
    done("export", "classifier", "--force")
    (folder / "runs/a/eval/linear.json").touch()
    done("export", "classifier", "runs/a", "--output", "x.safetensors")
    assert load_classifier(Path("x.safetensors")).classifier.evaluator == "linear"
    assert sslcli.export(exporter="classifier").path == Path("runs/a/classifier.safetensors")
    assert sslcli.Run("runs/a").export("classifier", "y.safetensors").path == Path("y.safetensors")
    shutil.rmtree("runs/a")
    line = refused("export", "classifier")
    assert f"no run in {folder / 'runs'} has a classifier; `ssl eval RUN --method linear` trains one" in line
    (folder / "runs/b/classifier.safetensors").unlink()
    assert "runs/b: has no evaluation with a classifier" in refused("export", "classifier", "runs/b")


def test_what_cannot_be_exported_is_one_line(folder: Path) -> None:
    run = Path("runs/a")
    line = refused("export", "classifier", run / "eval/knn.json")
    assert line == "ssl: runs/a/eval/knn.json: has no classifier; `ssl eval RUN --method linear` trains one"
    older = run / "eval/logistic.json"  # of a version that did not keep it
    older.write_text(json.dumps({k: v for k, v in json.loads(older.read_text()).items() if k != "classifier"}))
    line = refused("export", "classifier", older)
    assert line.endswith("it was not kept; evaluate again, with `ssl eval runs/a --method logistic`")
    assert "no such file" in refused("export", "classifier", "gone.json")
    assert "should end in .safetensors, .onnx, .pt2" in refused("export", "classifier", "runs/a", "--output", "x.bin")
    line = refused("export", "classifier", "runs/a", "opset=18", "--output", "x.pt2")
    assert line == "ssl: opset: is an option of format=onnx, and this is torch-export"
    assert "normalize: is an option of format=onnx" in refused("export", "classifier", "runs/a", "normalize=false")
    assert "holds no classifier" in refused("export", "classifier", run / "backbone.safetensors")
    for word in ("eval", "export"):
        words = [word, *["backbone"] * (word == "export"), run / "eval/linear.json"]
        assert "`ssl export classifier` takes the classifier" in refused(*words)
    file = run / "eval/linear.safetensors"
    shutil.copy(run / "eval/finetune.safetensors", file)
    assert "is not the classifier of linear.json" in refused("export", "classifier", run / "eval/linear.json")
    file.write_bytes(b"")
    assert f"{file}: is damaged" in refused("export", "classifier", run / "eval/linear.json")
    file.unlink()
    assert f"{file}: no such file" in refused("export", "classifier", run / "eval/linear.json")


@pytest.mark.parametrize(
    "entry",
    [{"file": 5, "sha256": "x"}, {"file": "linear.safetensors", "sha256": []}, {"file": "a\n", "sha256": "x"}, 7],
)
def test_a_damaged_result_is_one_line_and_passed_over(folder: Path, entry: object) -> None:
    damaged = Path("runs/a/eval/zero.json")  # the newest
    damaged.write_text(json.dumps({"method": "linear", "classifier": entry}))
    assert f"{damaged}: has no classifier; it was not kept" in refused("export", "classifier", damaged)
    assert kept_in(Path("runs/a"))[0].name == "finetune.json"
    assert done("export", "classifier")[1].startswith("using runs/a/eval/finetune.json")
    damaged.write_text("[" * 200_000)
    assert "cannot be read as a result of `ssl eval`" in refused("export", "classifier", damaged)


def test_a_linear_classifier_needs_the_backbone_that_it_was_trained_on(folder: Path) -> None:
    (checkpoint,) = Path("runs/a/checkpoints").iterdir()
    checkpoint.unlink()
    load_classifier(Path("runs/a/eval/linear.json"))  # found by its weights, in backbone.safetensors
    done("train", "c.yaml", "seed=1", "--output", "runs/other")
    shutil.copy("runs/other/backbone.safetensors", "runs/a/backbone.safetensors")
    line = refused("export", "classifier", "runs/a/eval/linear.json")
    assert "runs/a no longer has the backbone that it was trained on; run `ssl eval` again" in line
    load_classifier(Path("runs/a/eval/finetune.json"))  # has its own


def test_earlier_classifiers_stay_with_their_results(folder: Path) -> None:
    before = (folder / "runs/a/eval/linear.safetensors").read_bytes()
    done("eval", "runs/a", "--method", "linear", "epochs=1", "--seeds", "2", "--seed", "3")
    names = {name: json.loads((folder / f"runs/a/eval/{name}.json").read_text()) for name in ("linear", "linear.1")}
    for name, result in names.items():
        assert result["classifier"]["file"] == f"{name}.safetensors"
        load_classifier(folder / f"runs/a/eval/{name}.json")
    assert (folder / "runs/a/eval/linear.1.safetensors").read_bytes() == before


def test_a_network_without_a_run_keeps_its_classifier_beside_the_output(folder: Path) -> None:
    words = ["--method", "linear", "epochs=1", "data={name: shapes, count: 100, size: 16}", "--output", "net.json"]
    words += ["backbone.width=4", "backbone.stem=small"]
    done("eval", "resnet18", *words)
    assert json.loads(Path("net.json").read_text())["classifier"]["file"] == "net-classifier.safetensors"
    top1 = json.loads(Path("net.json").read_text())["metrics"]["top1"]
    pixels, labels, _ = images()
    with torch.no_grad():
        right = sslcli.load_classifier("net.json")(pixels.float() / 255).argmax(dim=1) == labels
    assert float(right.double().mean()) == pytest.approx(top1, abs=1e-9)
    Path("net.json").unlink()
    Path("net.png").unlink(missing_ok=True)
    assert "net-classifier.safetensors: already exists" in refused("eval", "resnet18", *words)
    done("eval", "runs/a", "--method", "linear", "epochs=1", "--output", "run.json")
    assert load_classifier(Path("run.json")).classifier.evaluator == "linear"


def classified(it: Trained, **more: object) -> Trained:
    weight = torch.randn(3, it.backbone.spec.feature_dim)
    return dataclasses.replace(
        it, classifier=Classifier(weight, torch.randn(3), ("cat", "dog", "ä'\""), "linear", **more)
    )


def test_weights_load_into_torchvisions_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = classified(network("resnet18", {"stem": "small"}))
    exported = export(ClassifierExporter, it, tmp_path / "c.safetensors")
    assert "import torchvision" in exported.how_to_load
    names = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)
    black = expected(it, scaled(it, torch.zeros(1, 3, 16, 16)))
    scores = black @ it.classifier.weight.T + it.classifier.bias
    torch.testing.assert_close(names["scores"], scores, rtol=1e-4, atol=1e-4)
    assert names["classes"] == ["cat", "dog", "ä'\""]


@pytest.mark.parametrize("feature", ["cls_last2", "tokens"])
def test_other_features_of_a_network_are_kept(tmp_path: Path, feature: str) -> None:
    plain = network("vit_tiny", {"patch_size": 4, "depth": 2})
    wrapped = dataclasses.replace(plain, backbone=FeatureBackbone(plain.backbone, feature, 16).eval())
    it = classified(wrapped, feature=feature, interpolation="bicubic")
    save_classifier(tmp_path / "c.safetensors", it)
    found = load_classifier(tmp_path / "c.safetensors")
    assert dataclasses.replace(found.classifier, weight=0, bias=0) == dataclasses.replace(
        it.classifier, weight=0, bias=0
    )
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(expected(found, pixels), expected(it, pixels))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (16, 16), (16, 30), (50, 50)])
def test_the_lines_prepare_an_image_as_the_evaluation_does(height: int, width: int, interpolation: str) -> None:
    it = classified(network(), interpolation=interpolation)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5), (height, width), mode="bicubic")[0].clamp(0, 1)
    pixels = (smooth * 255).round().to(torch.uint8)
    resize = Resize(Resize.Options.parse({"interpolation": interpolation}), 16)
    ours = pixels
    if (height, width) != (16, 16):
        draws = resize.parameters(torch.empty(1, resize.draws, dtype=torch.float64), torch.tensor([[height, width]]))
        ours = resize.apply_one(pixels, {name: value[0] for name, value in draws.items()})
    names = {"image": Image.fromarray(pixels.permute(1, 2, 0).numpy())}
    lines = ["import numpy", "from PIL import Image, ImageOps", *preparation(it, normalized=False)[1:]]
    exec("\n".join(lines), names)
    assert abs(torch.from_numpy(names["images"])[0] * 255 - ours.float()).max() < 4


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB with a transparent color", "CMYK", "L", "1"])
def test_the_lines_read_any_image_as_training_does(tmp_path: Path, kind: str, channels: int) -> None:
    pixels = torch.randint(256, (16, 16, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path, image = tmp_path / ("x.tiff" if kind == "CMYK" else "x.png"), Image.fromarray(pixels.numpy(), "RGBA")
    image = image.convert("RGB").quantize(8) if kind == "P" else image.convert(kind.split()[0])
    transparent = {"P": 3, "RGB with a transparent color": tuple(pixels[0, 0, :3].tolist())}.get(kind)
    image.save(path, **({} if transparent is None else {"transparency": transparent}))
    it = classified(network("cifar_resnet20", {"width": 4}, channels=channels))
    names = {"image": Image.open(path)}
    exec("\n".join(["import numpy", *IMPORT_PIL, *preparation(it, normalized=False)[1:]]), names)
    assert (torch.from_numpy(names["images"])[0] * 255).round().equal(decode(path, channels).float())


def test_gray_and_many_channels_have_lines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for channels in (1, 5):
        it = classified(network("cifar_resnet20", {"width": 4}, channels=channels))
        it = dataclasses.replace(it, card=dataclasses.replace(it.card, mean=(0.5,) * channels, std=(0.2,) * channels))
        exported = export(ClassifierExporter, it, tmp_path / f"{channels}.safetensors")
        names = pasted(exported.how_to_load, tmp_path / "elsewhere", monkeypatch)
        black = expected(it, scaled(it, torch.zeros(1, channels, 16, 16)))
        scores = black @ it.classifier.weight.T + it.classifier.bias
        torch.testing.assert_close(names["scores"], scores, rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    it = classified(network())
    it.classifier.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not all finite"):
        save_classifier(tmp_path / "c.safetensors", it)
    assert list(tmp_path.iterdir()) == []
