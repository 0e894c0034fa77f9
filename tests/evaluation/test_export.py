"""`export` and `ssl export`: where files go, what is never replaced, and one line for every error."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from sslcli.cli.main import app
from sslcli.contracts.errors import UserError
from sslcli.evaluation.export import export
from sslcli.training.train import train


@pytest.fixture
def run(tiny, tmp_path):
    return train(tiny("training.epochs=1", "training.max_steps=4"), tmp_path / "run").directory


def ssl(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_without_an_output_the_file_is_in_the_run_or_beside_the_given_one(run, tmp_path):
    assert export("features", run, None, []).path == run / "features.safetensors"
    assert export("features", run, None, ["format=npy"]).path == run / "features.npy"
    one = run / "backbone.safetensors"
    assert export("backbone", one, None, []).path == run / "backbone-backbone.safetensors"


def test_only_the_run_s_own_backbone_is_replaced_unasked(run):
    assert (run / "backbone.safetensors").is_file()
    export("backbone", run, None, [], replace=False)
    export("features", run, None, [], replace=False)
    with pytest.raises(UserError, match=r"features\.safetensors: already exists; choose another --output"):
        export("features", run, None, [], replace=False)
    with pytest.raises(UserError, match=r"backbone\.safetensors: already exists"):
        export("features", run, run / "backbone.safetensors", [], replace=False)
    export("features", run, None, [], replace=True)


def test_the_second_file_of_an_array_is_not_replaced_either(run, tmp_path):
    (tmp_path / "f.json").write_text("mine")
    with pytest.raises(UserError, match=r"f\.json: already exists"):
        export("features", run, tmp_path / "f.npy", [], replace=False)
    assert (tmp_path / "f.json").read_text() == "mine"
    assert not (tmp_path / "f.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["features", "RUN", "data.name=shape"], "unknown dataset 'shape'"),
        (["features", "RUN", "--output", "f.txt"], "should end in .safetensors or .npy"),
        (["features", "RUN", "--device", "tpu"], "device: 'tpu' is not a device"),
        (["torch-export", "RUN", "--output", "b.bin"], "needs a name that ends in .pt2"),
        (["projector", "RUN/backbone.safetensors"], "holds only a backbone"),
        (["backbone", "RUN", "format=jax"], "format: should be"),
        (["backbone", "RUN", "format=timm"], "timm has no network like 'resnet18'"),
        (["onnx", "RUN", "opset=3"], "opset: "),
    ],
)
def test_every_error_is_one_line_and_exit_code_2(run, arguments, said):
    before = sorted(run.iterdir())
    done = ssl("export", *(each.replace("RUN", str(run)) for each in arguments))
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert sorted(run.iterdir()) == before


def test_the_lines_on_stdout_can_be_pasted(run, tmp_path):
    done = ssl("export", "features", run, "--output", tmp_path / "f.npy", "data.split=test", "batch_size=8")
    assert done.exit_code == 0, done.output
    names = {}
    exec(done.stdout, names)
    assert names["features"].shape[0] == len(names["names"])
