"""`ssl eval` with one or several targets, evaluators and seeds."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from cli_helpers import folder, run, trained  # noqa: F401  # fixtures
from PIL import Image
from run_helpers import done, refused, ssl

from sslcli import plugins
from sslcli.cli.evaluate import split_words
from sslcli.evaluation.extraction import extract_features

# ruff: noqa: F811

NETWORK = ["backbone.stem=small", "backbone.width=4"]


@pytest.mark.usefixtures("pictures")
def test_eval_prints_its_results_and_keeps_them_in_the_run(run):
    result = json.loads(done("eval", run, "k=[5]", "data.limit=40", "--json")[0])
    assert 0 <= result["top1"] <= 1
    assert (result["method"], result["protocol"]["k"]) == ("knn", 5)
    stored = json.loads((run / "eval" / "knn.json").read_text())
    assert (stored["metrics"]["top1"], stored["protocol"]) == (result["top1"], result["protocol"])
    assert (run / "eval" / "knn.png").read_bytes().startswith(b"\x89PNG")
    data = "data={name: shapes, count: 48, size: 16, limit: 40}"
    out, _ = done("eval", run / "backbone.safetensors", "k=[5]", data)
    assert out.splitlines()[0].split() == ["top1", f"{result['top1']:.2%}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: no such run or file"),
        (["."], ".: is not a run directory (it has no config.yaml)"),
        (["c.yaml"], "c.yaml: "),
        (["run", "--method", "knnn"], "unknown evaluator 'knnn'; did you mean knn?"),
        (["run", "kk=3"], "command line: kk: unknown option of 'knn'; did you mean k?"),
        (["run", "k=x"], "command line: k: should be a valid integer, not 'x'"),
        (["run", "data.countt=x"], "command line: data.countt: unknown option of 'shapes'; did you mean count?"),
        (["run", "data=shapess"], "unknown dataset 'shapess'; did you mean shapes?"),
        (["run", "k"], "k: no such run or file; "),
        (["run", "=3"], "command line: '=3': should look like key.path=value"),
        (["k=[5]"], "nothing to evaluate: give a run"),
        (["run", "--device", "gpu"], "device: 'gpu' is not a device; use auto, cpu, cuda, cuda:N or mps"),
        (["backbone.safetensors", "data=cifar10", "data.root=nowhere"], "data.root: no CIFAR-10 in nowhere"),
        pytest.param(
            ["run", "--device", "cuda:1"], "device: cuda:1: there is no CUDA device that torch can use",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_a_wrong_eval_is_one_line(run, arguments, message):
    shutil.copy(run / "backbone.safetensors", ".")
    assert refused("eval", *arguments).startswith(f"ssl: {message}")
    assert not (run / "eval").exists()


def test_a_damaged_file_is_named(run):
    path = run / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:100], b""):
        path.write_bytes(damaged)
        assert str(path) in refused("eval", path)
    assert str(path) in refused("export", "backbone", path, "--output", "x.safetensors")


def test_a_run_without_an_intact_checkpoint_is_reported(run):
    (checkpoint,) = (run / "checkpoints").iterdir()
    checkpoint.write_bytes(b"damaged")
    code, out, err = ssl("eval", run)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "ssl: run/checkpoints: none of the 1 checkpoints is intact"
    checkpoint.unlink()
    assert "has no checkpoint yet" in refused("eval", run)


def test_a_word_is_an_override_if_it_looks_like_one_and_no_such_file_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    words = ["lr=0.1", "runs/lr=3", "k=[5]", "data.root=~/a/b=c", "resnet18", "torchvision/resnet50", "=3"]
    assert split_words(words) == (
        ["lr=0.1", "runs/lr=3", "resnet18", "torchvision/resnet50"],
        ["k=[5]", "data.root=~/a/b=c", "=3"],
    )


def test_several_targets_make_one_table_on_the_same_data(run):
    shutil.copytree(run, "other")
    out, err = done("eval", "run", "other", "resnet18", *NETWORK, "k=[5]")
    header, *rows = out.splitlines()
    assert header.split() == ["target", "top1", "top5"]
    assert [row.split()[0] for row in rows] == ["run", "other", "resnet18"]
    assert rows[0].split()[1:] == rows[1].split()[1:]
    assert len({len(row) for row in (header, *rows)}) == 1
    assert "evaluating all on shapes, which run was trained on; each with its own image size and normalization" in err
    assert "results shown but not saved: resnet18; use --output FILE to save them" in err
    assert all((Path(name) / "eval" / "knn.json").is_file() for name in ("run", "other"))


def test_several_as_json_have_the_documented_shape(run):
    out, _ = done("eval", "run", "run/backbone.safetensors", "k=[5]", "--json")
    results = json.loads(out)["results"]
    assert [row["target"] for row in results] == ["run", "run/backbone.safetensors"]
    assert [row["file"] for row in results] == ["run/eval/knn.json", None]
    assert results[0]["metrics"] == results[1]["metrics"]
    help_text, _ = done("eval", "--help")
    assert "results" in help_text


def test_all_runs_every_evaluator_that_takes_part_and_names_the_others(run, monkeypatch):
    counted = []
    monkeypatch.setattr(
        "sslcli.evaluation.subject.extract_features",
        lambda *arguments, **named: (counted.append(1), extract_features(*arguments, **named))[1],
    )
    out, err = done("eval", "run", "--method", "all", "epochs=1", "k=[5]", "iterations=5")
    methods = [row.split()[1] for row in out.splitlines()[1:]]
    expected = [plugin for plugin in plugins.find("evaluators") if plugin.package == "sslcli"]
    assert {"knn", "linear"} <= set(methods)
    for plugin in expected:
        assert (plugin.name in methods) is plugins.load_found(plugin).in_all
        assert (f"skipped because it is slow: {plugin.name} " in err) is not plugins.load_found(plugin).in_all
    assert len(counted) == 2  # features of each part, once for all
    assert {path.stem for path in Path("run/eval").glob("*.json")} == set(methods)


def test_an_option_that_no_evaluator_has_is_refused_with_all(run):
    code, out, err = ssl("eval", "run", "--method", "all", "epohcs=1")
    assert (code, out) == (2, "")
    assert "ssl: command line: epohcs: no evaluator of --method all has this option; did you mean epochs?" in err
    assert not Path("run/eval").exists()


def test_several_seeds_give_a_standard_deviation_and_are_all_kept(run):
    out, err = done("eval", "run", "--method", "linear", "epochs=3", "--seeds", 3, "--seed", 7, "--json")
    result = json.loads(out)
    assert result["protocol"]["seeds"] == [7, 8, 9]
    assert result["std"]["top1"] >= 0
    stored = json.loads(Path("run/eval/linear.json").read_text())
    assert [row["seed"] for row in stored["details"]["seeds"]] == [7, 8, 9]
    assert stored["std"] == result["std"]
    assert err.count("features of") == 2
    assert "linear: seed 9" in err
    assert "linear: ± is the spread over 3 seeds of the evaluation alone" in err
    out, _ = done("eval", "run", "--method", "linear", "epochs=3", "--seeds", 2)
    assert "±" in out.splitlines()[0]


def test_an_evaluator_without_randomness_runs_once_for_all_seeds(run):
    out, err = done("eval", "run", "k=[5]", "--seeds", 5, "--json")
    assert "knn: has no randomness, so one seed is enough" in err
    assert "std" not in json.loads(out)


def test_a_run_that_cannot_be_written_to_is_evaluated_and_shown(run):
    Path("run/eval").touch()
    out, err = done("eval", "run", "k=[5]")
    assert out.startswith("top1")
    assert "run/eval/knn.json: cannot be written (File exists)\n" in err
    assert "results shown but not saved: run; use --output FILE to save them" in err
    _, err = done("eval", "run", "k=[5]", "--output", "kept.json")
    assert json.loads(Path("kept.json").read_text())["target"] == "run"
    assert "but not saved" not in err


def test_results_without_a_run_go_to_output_and_nothing_is_replaced(run, monkeypatch):
    data = ["data={name: shapes, count: 48, size: 16}", *NETWORK]

    def no_room(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    done("eval", "resnet18", *data, "k=[5]", "--output", "r.json")
    stored = json.loads(Path("r.json").read_text())
    assert (stored["target"], stored["method"]) == ("resnet18", "knn")
    assert stored["protocol"]["pretrained_on"] == "none"
    Path("mine.png").write_text("a picture of mine")
    for name, message in (
        ("r.json", "r.json: already exists; choose another --output"),
        ("mine.json", "mine.png: already exists"),
        ("new.png", "new.png: results are JSON"),
    ):
        assert message in refused("eval", "resnet18", *data, "--output", name)
    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    err = refused("eval", "resnet18", *data, "--output", "s.json")
    assert err == "ssl: s.json: cannot be written (Read-only file system); choose another --output"
    assert "no data to evaluate on" in refused("eval", "resnet18", "k=[5]")


def test_the_protocol_names_everything_that_affects_the_results(run):
    out, _ = done("eval", "run", "--method", "linear", "epochs=2", "--json")
    protocol = json.loads(out)["protocol"]
    assert protocol["overlap"] == {
        "shared_images": 0, "compared": "the images' bytes", "pretrained_on_test": False
    }  # fmt: skip
    assert protocol["decided"].keys() >= {"lr"}
    assert len(protocol["file_sha256"]) == len(protocol["weights_sha256"]) == 64
    assert protocol["card"]["image_size"] == protocol["image_size"] == 16
    for key in ("train", "eval", "view", "feature", "mean", "std", "epochs", "seeds", "options", "torch"):
        assert key in protocol


def test_without_labels_evaluators_that_need_some_are_left_out_or_refused(run):
    Path("photos").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number * 30, 99, 9)).save(f"photos/{number}.png")
    data = ["data.name=images", "data.root=photos"]
    err = refused("eval", "run", *data)
    assert err == "ssl: images: there are no labeled images to train and test on; choose data that has some"
    out, err = done("eval", "run", "--method", "all", *data)
    assert "skipped because there are no labeled images to train and test on: knn" in err
    assert "rank_me" in out.splitlines()[0]
    assert [path.stem for path in Path("run/eval").glob("*.json")] == ["quality"]
    for number in range(8):
        Path("classes", "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Path(f"photos/{number}.png").rename(f"classes/{'ab'[number % 2]}/{number}.png")
    assert "all labeled images are in one part" in refused("eval", "run", "data.name=folder", "data.root=classes")


def test_an_evaluator_that_breaks_the_seal_fails_with_one_line_and_writes_nothing(run):
    Path("peek.py").write_text(
        "from sslcli.contracts.evaluation import EvaluationResult, Evaluator\n"
        "class Peek(Evaluator):\n"
        '    """Looks at the test set first."""\n'
        "    def evaluate(self, subject):\n"
        "        labels = subject.features('eval').labels\n"
        "        return EvaluationResult({'top1': 1.0}, {})\n"
    )
    plugins.register_file(Path("peek.py"))
    code, out, err = ssl("eval", "run", "--method", "peek")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("ssl: the evaluator 'peek' asks for the test images before")
    assert not Path("run/eval").exists()
