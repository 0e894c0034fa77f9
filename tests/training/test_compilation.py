"""`training.compile`: the meaning of `auto`, compilers that are missing or fail, and resuming a compiled run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_helpers import assert_same_end, newest
from torch import Tensor

from sslcli.contracts.backbone import Backbone
from sslcli.contracts.errors import UserError
from sslcli.evaluation.extraction import extract_features
from sslcli.training import compilation
from sslcli.training.compilation import missing_compiler, resolve_compile
from sslcli.training.resume import keep_resolved
from sslcli.training.setup import build
from sslcli.training.train import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def compilers(monkeypatch):
    """A machine with every compiler, and one thread."""
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize(
    ("name", "device", "batches", "compiled"),
    [
        ("auto", CPU, 1144, "none"), ("auto", CPU, 1145, "all"),
        ("auto", CUDA, 7_999, "none"), ("auto", CUDA, 8_000, "views"), ("auto", CUDA, 14_999, "views"),
        ("auto", CUDA, 15_000, "all"), ("auto", torch.device("mps"), 10**9, "none"),
        ("none", CPU, 10**9, "none"), ("views", CPU, 1, "views"), ("all", CPU, 1, "all"),
    ],
)  # fmt: skip
def test_auto_compiles_long_runs_and_everything_else_is_as_asked_for(compilers, name, device, batches, compiled):
    assert resolve_compile(name, device, [32, 32], 256, batches) == compiled


def test_without_a_compiler_auto_is_eager_and_anything_else_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert resolve_compile("auto", CPU, [32, 32], 256, 10**9) == "none"
    with pytest.raises(UserError, match=r"training.compile: views: there is no C\+\+ compiler \(g\+\+ or .*=none"):
        resolve_compile("views", CPU, [32], 8, 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler(CPU) == "there is no C++ compiler (no-such-compiler)"


def test_cuda_graphs_are_refused_on_a_cpu(tiny):
    with pytest.raises(UserError, match=r"training\.cuda_graphs: works only on CUDA; set it to false"):
        build(tiny("training.cuda_graphs=true"))


class TestACompilerThatFails:
    @pytest.fixture(autouse=True)
    def _broken(self, compilers, monkeypatch):
        def broken(*args, **options):
            raise RuntimeError("ld: cannot find\n-lgomp")

        monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
        monkeypatch.setattr(compilation, "_PIXELS_PER_THREAD", 1)

    def test_auto_is_eager_with_a_warning(self, tiny, messages):
        session = build(tiny("training.compile=auto"))
        assert session.config.training.compile == "none"
        assert (
            messages[-1] == "warning: nothing is compiled: the compiler failed (RuntimeError: ld: cannot find -lgomp)"
        )
        assert session.method.backbone._compiled_call_impl is None
        images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
        draws = session.views.draw(0, torch.arange(8), torch.tensor([[16, 16]]).expand(8, 2))
        assert len(session.views.apply([images], draws)) == 2

    def test_anything_else_is_refused_in_one_line(self, tiny):
        with pytest.raises(UserError, match=r"^training.compile: all: the compiler failed \(.*; set .*=none$"):
            build(tiny("training.compile=all"))

    def test_a_dry_run_shows_what_would_be_compiled(self, tiny):
        assert build(tiny("training.compile=auto"), compiled=False).config.training.compile == "all"


def test_large_views_stay_eager_on_a_cpu(tiny, monkeypatch, odd_plugins):
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: made.append(function) or function)
    sizes = "{count: 1, size: 128, crop_scale: [0.5, 1]}, {count: 1, size: 64, crop_scale: [0.5, 1]}"
    build(tiny("training.compile=views", f"views=[{sizes}]", "method=mean_method"))
    assert [function.__self__.size for function in made] == [64]


@pytest.mark.parametrize(
    ("name", "fresh", "forgiving"), [("auto", True, True), ("all", True, False), ("all", False, True)]
)
def test_a_backbone_that_cannot_be_compiled_ends_only_a_run_that_asked_for_it(
    tiny, compilers, monkeypatch, messages, name, fresh, forgiving
):
    def broken(*images):
        raise torch._dynamo.exc.TorchDynamoException("no code for\nthis. Set TORCHDYNAMO_VERBOSE=1 for more")

    monkeypatch.setattr(
        torch, "compile", lambda function, **o: broken if isinstance(owner(function), Backbone) else function
    )
    monkeypatch.setattr(compilation, "_PIXELS_PER_THREAD", 1)
    backbone = build(tiny(f"training.compile={name}"), fresh=fresh).method.backbone
    said = "the compiler failed (TorchDynamoException: no code for this.)"
    if not forgiving:
        with pytest.raises(UserError, match=re.escape(f"training.compile: all: {said}; set training.compile=none")):
            backbone(torch.zeros(2, 3, 16, 16))
        return
    for _ in range(2):
        assert backbone(torch.zeros(2, 3, 16, 16)).pooled.shape == (2, 32)
    assert [line for line in messages if "compiler" in line] == [f"warning: not compiled: {said}"]


def owner(function):
    return getattr(function, "__self__", None)


def test_a_resumed_run_keeps_what_auto_was(tiny):
    config = tiny("training.compile=auto")
    assert keep_resolved(config, {"training": {"compile": "all"}}).training.compile == "all"
    assert keep_resolved(config, {"training": {}}).training.compile == "none"  # a run older than the option
    assert keep_resolved(tiny("training.compile=views"), {"training": {"compile": "all"}}).training.compile == "views"


def test_features_are_computed_by_the_eager_backbone(tiny):
    """A monitor must not compile the backbone again for its own mode and batch size."""
    session = build(tiny())
    backbone, compiled = session.method.backbone, []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    backbone.compile(dynamic=False, backend=backend)
    images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)

    inputs = SimpleNamespace(device=CPU, image_size=16, normalize=session.normalize)
    extract_features(backbone, images, inputs, batch_size=8)
    assert compiled == []
    backbone(session.normalize(images))
    assert compiled != []


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_compiled_run_is_close_to_the_eager_one_and_resumes_exactly(tiny, tmp_path: Path, method, messages):
    overrides = ["training.compile=all", f"method={method}"]

    def run(name: str, *more: str, resume: bool = False) -> dict[str, Tensor]:
        train(tiny(*overrides, *more), tmp_path / name, resume=resume)
        return newest(tmp_path / name).tensors

    run("whole")
    assert any("compiling the views and the backbone" in line for line in messages)
    run("parts", "training.max_steps=3")
    run("parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    # One step: in a network so small rounding errors grow quickly.
    first, eager = run("first", "training.max_steps=1"), run("eager", "training.max_steps=1", "training.compile=none")
    torch.testing.assert_close(first, eager, rtol=1e-3, atol=1e-4)  # the names too
