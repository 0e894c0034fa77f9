"""Checkpoints, backbones and weights whose hashes are right, and which hold what nobody wrote: one line each."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from sslcli.contracts.errors import SslError, UserError
from sslcli.runs import files
from sslcli.runs.backbone_file import load_backbone_file
from sslcli.runs.checkpoint import list_checkpoints
from sslcli.runs.trained import load_trained
from sslcli.runs.weights import read_weights
from sslcli.training.train import train

ADAMW = "optimizer={name: adamw, lr: 0.001}"
DOCUMENTS = {
    "no config": lambda d: d.pop("config"),
    "config a list": lambda d: d.update(config=[]),
    "a section a word": lambda d: d["config"].update(backbone="x", training=[1]),
    "no views": lambda d: d["config"].update(views=[{}]),
    "no numbers": lambda d: d.pop("numbers"),
    "no world size": lambda d: d.pop("world_size"),
    "step a word": lambda d: d.update(step="x"),
    "step true": lambda d: d.update(step=True),
    "step negative": lambda d: d.update(step=-5),
    "no card": lambda d: d.pop("card"),
    "card a list": lambda d: d.update(card=[1]),
    "channels a word": lambda d: d["card"].update(channels="3"),
    "no width": lambda d: d["card"].update(std=[0, 0, 0]),
    "position of lists": lambda d: d["position"].update(made=[1]),
    "position without steps": lambda d: d["position"].update(steps_per_epoch=0),
    "plugins a word": lambda d: d["plugins"].update(backbone="x"),
    "encoder a number": lambda d: d.update(encoder=5),
}
#: Nothing that concerns the network.
ALSO_A_NETWORK = {
    "no config", "a section a word", "no views", "no numbers", "no world size", "plugins a word", "position of lists",
    "position without steps",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture
def run(saved, tiny, tmp_path):
    """A run of two steps, with AdamW."""
    if not saved.exists():
        train(tiny(ADAMW, "training.max_steps=2"), saved)
    return shutil.copytree(saved, tmp_path / "run")


def rewrite(path, change, tensors=None):
    found, document = files.read(path)
    path.unlink()
    change(document)
    files.write(path, {**found} if tensors is None else tensors(found), document)


def one_line(work):
    with pytest.raises(SslError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_of_another_program_is_one_line(run, tiny, name):
    path = list_checkpoints(run / "checkpoints")[0]
    rewrite(path, DOCUMENTS[name])
    if name not in ALSO_A_NETWORK:
        assert str(path) in one_line(lambda: load_trained(path))
    if name == "no card":  # nobody needs it to go on
        assert train(tiny(ADAMW, "training.max_steps=3"), run, resume=True).step == 3
        return
    message = one_line(lambda: train(tiny(ADAMW), run, resume=True))
    assert str(path) in message or "none of the 1 checkpoints is intact" in message
    assert len(json.loads((run / "environment.json").read_text())["starts"]) == 1  # nothing was written


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("exp_avg", lambda t: t.new_zeros(2, 3), "the optimizer keeps"),
        ("exp_avg", lambda t: t.to(torch.int8), "as torch.int8; the optimizer keeps torch.float32"),
        ("exp_avg", lambda t: None, "has no 'exp_avg' of 'backbone."),
        ("step", lambda t: -t, "has -2.0 as 'step' of 'backbone."),
        ("step", lambda t: t.new_zeros(3), "in the shape (3,)"),
    ],
    ids=["shape", "type", "missing", "negative step", "shape of a number"],
)
def test_state_that_the_optimizer_does_not_keep_is_named(run, tiny, key, change, said):
    path = list_checkpoints(run / "checkpoints")[0]

    def changed(tensors):
        name = next(name for name in tensors if name.startswith("optimizer.backbone") and name.endswith(f".{key}"))
        tensors[name] = change(tensors[name])
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    rewrite(path, lambda document: None, changed)
    message = one_line(lambda: train(tiny(ADAMW), run, resume=True))
    assert said in message
    assert str(path) in message


def test_a_checkpoint_without_or_with_more_state_of_the_optimizer_is_refused(run, tiny):
    path = list_checkpoints(run / "checkpoints")[0]
    content = path.read_bytes()
    rewrite(path, lambda d: None, lambda t: {k: v for k, v in t.items() if not k.startswith("optimizer.")})
    message = one_line(lambda: train(tiny(ADAMW), run, resume=True))
    assert "has no state of the optimizer, which keeps 'step' and 'exp_avg' and 'exp_avg_sq'" in message
    path.unlink()
    path.write_bytes(content)
    name = next(name for name in files.read(path)[0] if name.endswith(".exp_avg"))
    rewrite(path, lambda d: None, lambda t: {**t, f"{name}_more": t[name].clone()})
    assert "'exp_avg_more'" in one_line(lambda: train(tiny(ADAMW), run, resume=True))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(run, tiny, tmp_path, dtype):
    path = list_checkpoints(run / "checkpoints")[0]
    tensors = files.read(path, "method.backbone.")[0]
    own = load_trained(path).backbone.export_state()[0]
    state = {name: value.to(dtype) if value.ndim else value for name, value in own.items()}
    save_file(state, tmp_path / "w.safetensors")
    config = tiny(f"backbone.weights={tmp_path / 'w.safetensors'}")
    assert str(dtype) in one_line(lambda: train(config, tmp_path / "new"))
    rewrite(path, lambda d: None, lambda t: {k: v.to(dtype) if k in tensors and v.ndim else v for k, v in t.items()})
    assert str(dtype) in one_line(lambda: load_trained(path))
    assert str(dtype) in one_line(lambda: train(tiny(ADAMW), run, resume=True))


def test_files_that_are_no_weights_say_what_they_are(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, said in {
        "page.pth": "is a web page", "module.pth": "cannot be read as weights alone", "list.pth": "holds no named",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_weights(tmp_path / name, {})
    with pytest.raises(UserError, match="is a directory"):
        load_backbone_file(tmp_path)
