"""`ssl eval` with several targets, evaluators and seeds."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslcli import plugins
from sslcli.cli.evaluate import split_words
from sslcli.cli.main import app
from sslcli.contracts.errors import UserError
from sslcli.evaluation.extraction import extract_features

CONFIG = """\
method: {name: simclr, projector: {output_dim: 8}}
backbone: {name: resnet18, stem: small, width: 8}
data: {name: shapes, count: 48, size: 16}
optimizer: {name: sgd, lr: 0.05}
schedule: constant
training: {epochs: 1, batch_size: 16, device: cpu, precision: fp32}
callbacks: {knn: null, online_probe: null, tensorboard: null}
"""


def ssl(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def done(*arguments: object) -> tuple[str, str]:
    code, out, err = ssl(*arguments)
    assert code == 0, err
    return out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    (folder / "c.yaml").write_text(CONFIG)
    done("train", folder / "c.yaml", "--output", folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of a finished run, in a folder of its own that is the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    yield Path("run")
    plugins.clear_cache()


def test_words_are_told_apart_by_what_exists_and_by_their_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    words = ["lr=0.1", "runs/lr=3", "k=[5]", "data.root=~/a/b=c", "resnet18", "torchvision/resnet50", "=3"]
    assert split_words(words) == (
        ["lr=0.1", "runs/lr=3", "resnet18", "torchvision/resnet50"],
        ["k=[5]", "data.root=~/a/b=c", "=3"],
    )
    with pytest.raises(UserError, match="what to judge"):
        split_words(["k=[5]"])


def test_several_targets_make_one_table_on_the_same_data(run):
    shutil.copytree(run, "other")
    out, err = done("eval", "run", "other", "resnet18", "backbone.stem=small", "backbone.width=8", "k=[5]")
    header, *rows = out.splitlines()
    assert header.split() == ["target", "top1", "top5"]
    assert [row.split()[0] for row in rows] == ["run", "other", "resnet18"]
    assert rows[0].split()[1:] == rows[1].split()[1:]
    assert len({len(row) for row in (header, *rows)}) == 1
    assert "all are evaluated on shapes, as run was trained on, each in its own size and normalization" in err
    assert "only shown, not written: resnet18; use --output FILE to write it" in err
    assert all((Path(name) / "eval" / "knn.json").is_file() for name in ("run", "other"))


def test_several_as_json_have_the_documented_shape(run):
    out, _ = done("eval", "run", "run/backbone.safetensors", "k=[5]", "--json")
    results = json.loads(out)["results"]
    assert [row["target"] for row in results] == ["run", "run/backbone.safetensors"]
    assert [row["file"] for row in results] == ["run/eval/knn.json", None]
    assert results[0]["metrics"] == results[1]["metrics"]
    help_text, _ = done("eval", "--help")
    assert "results" in help_text


def test_all_runs_every_evaluator_that_is_declared_for_it_and_names_the_others(run, monkeypatch):
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
        assert (f"left out, it takes long: {plugin.name} " in err) is not plugins.load_found(plugin).in_all
    assert len(counted) == 2  # features of each part, once for all
    assert {path.stem for path in Path("run/eval").glob("*.json")} == set(methods)


def test_an_option_that_no_evaluator_has_is_reported_with_all(run):
    code, out, err = ssl("eval", "run", "--method", "all", "epohcs=1")
    assert (code, out) == (2, "")
    assert "ssl: command line: epohcs: no evaluator of --method all has this option; did you mean epochs?" in err
    assert not Path("run/eval").exists()


def test_seeds_give_a_spread_and_are_kept_each(run):
    out, err = done("eval", "run", "--method", "linear", "epochs=3", "--seeds", 3, "--seed", 7, "--json")
    result = json.loads(out)
    assert result["protocol"]["seeds"] == [7, 8, 9]
    assert result["std"]["top1"] >= 0
    stored = json.loads(Path("run/eval/linear.json").read_text())
    assert [row["seed"] for row in stored["details"]["seeds"]] == [7, 8, 9]
    assert stored["std"] == result["std"]
    assert err.count("features of") == 2
    assert "linear: seed 9" in err
    out, _ = done("eval", "run", "--method", "linear", "epochs=3", "--seeds", 2)
    assert "±" in out.splitlines()[0]


def test_an_evaluator_that_draws_nothing_runs_once_for_all_seeds(run):
    out, err = done("eval", "run", "k=[5]", "--seeds", 5, "--json")
    assert "knn: draws nothing, so that one seed is enough" in err
    assert "std" not in json.loads(out)


def test_a_result_that_cannot_be_written_is_shown(run):
    Path("run/eval").touch()
    out, err = done("eval", "run", "k=[5]")
    assert out.startswith("top1")
    assert "run/eval/knn.json: cannot be written (File exists)\n" in err
    assert "only shown, not written: run; use --output FILE to write it" in err
    _, err = done("eval", "run", "k=[5]", "--output", "kept.json")
    assert json.loads(Path("kept.json").read_text())["target"] == "run"
    assert "only shown" not in err


def no_room(**_: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_network_without_a_run_is_kept_where_output_says_and_nothing_is_replaced(run, monkeypatch):
    data = ["data={name: shapes, count: 48, size: 16}", "backbone.stem=small", "backbone.width=8"]
    done("eval", "resnet18", *data, "k=[5]", "--output", "r.json")
    stored = json.loads(Path("r.json").read_text())
    assert (stored["target"], stored["method"]) == ("resnet18", "knn")
    assert stored["protocol"]["pretrained_on"] == "none"
    code, out, err = ssl("eval", "resnet18", *data, "--output", "r.json")
    assert (code, out, err) == (2, "", "ssl: r.json: exists already; choose another --output\n")
    Path("mine.png").write_text("a picture of mine")
    for name, message in (("mine.json", "mine.png: exists already"), ("new.png", "new.png: results are JSON")):
        code, out, err = ssl("eval", "resnet18", *data, "--output", name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    code, out, err = ssl("eval", "resnet18", *data, "--output", "s.json")
    assert (code, out) == (2, "")
    assert err == "ssl: s.json: cannot be written (Read-only file system); choose another --output\n"
    code, _, err = ssl("eval", "resnet18", "k=[5]")
    assert code == 2
    assert "which data to evaluate on?" in err


def test_the_protocol_names_everything_that_decided_the_numbers(run):
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


def test_data_without_labels_leave_what_needs_some_out_and_refuse_it_alone(run):
    from PIL import Image

    Path("photos").mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (number * 30, 99, 9)).save(f"photos/{number}.png")
    data = ["data.name=images", "data.root=photos"]
    code, _, err = ssl("eval", "run", *data)
    assert (code, err) == (
        2,
        "ssl: images: there are no labeled images to train and test on; name data that have some\n",
    )
    out, err = done("eval", "run", "--method", "all", *data)
    assert "left out, there are no labeled images to train and test on: knn" in err
    assert "rank_me" in out.splitlines()[0]
    assert [path.stem for path in Path("run/eval").glob("*.json")] == ["quality"]
    for number in range(8):
        Path("classes", "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Path(f"photos/{number}.png").rename(f"classes/{'ab'[number % 2]}/{number}.png")
    code, _, err = ssl("eval", "run", "data.name=folder", "data.root=classes")
    assert (code, err.count("\n")) == (2, 1)
    assert "ssl: folder: all labeled images are one part" in err


def test_an_evaluator_that_peeks_ends_with_one_line_and_writes_nothing(run):
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
