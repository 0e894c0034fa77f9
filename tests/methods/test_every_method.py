"""What every built-in method owes the loop, whatever its objective: a method joins by being registered."""

from __future__ import annotations

import copy

import pytest
import torch
from small_options import method_case, method_cases
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from sslcli.config.document import Document
from sslcli.config.problems import Problems
from sslcli.config.views_section import resolve_views
from sslcli.contracts.data import DataInfo
from sslcli.contracts.method import Batch, Method, Progress, RunInfo, View
from sslcli.plugins import load

NAMES = method_cases()
SIZE, COUNT, STEPS = 16, 8, 6
DATA = DataInfo("random", 3, (SIZE, SIZE), (0.5,) * 3, (0.2,) * 3, classes=("a", "b", "c", "d"))
#: Buffers that a forward in training mode may change: those of batch norms.
STATISTICS = {"running_mean", "running_var", "num_batches_tracked", "steps"}

pytestmark = pytest.mark.parametrize("name", NAMES)


def build(name: str, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    method, options = method_case(name)
    cls = load("methods", method)
    resnet18 = load("backbones", "resnet18")
    # A residual branch that starts at zero gets no gradient in the first step, which is no fault of the method.
    plain = resnet18.Options.parse({"stem": "small", "width": 8, "zero_init_residual": False})
    run = RunInfo(total_steps=STEPS, steps_per_epoch=3, epochs=2, batch_size=COUNT, world_size=1, data=DATA)
    return cls(resnet18.build(plain, 3, SIZE), cls.Options.parse(options), run).train()


def batch(method: Method, step: int = 0) -> Batch:
    """Random images in the views that the method's own recipe asks for."""
    problems = Problems(Document({}))
    specs = resolve_views(None, type(method).recipe(method.options, SIZE), SIZE, problems)
    assert not problems.lines
    generator = torch.Generator().manual_seed(100 + step)
    sizes = [spec.size for spec in specs for _ in range(spec.count)]
    views = [View(torch.randn(COUNT, 3, size, size, generator=generator)) for size in sizes]
    schedule = {key: torch.tensor(function(step)) for key, function in method.schedules().items()}
    return Batch(views, torch.arange(COUNT) % 4, torch.arange(COUNT), schedule)


def optimizer_for(method: Method) -> torch.optim.Optimizer:
    parameters = [p for group in method.parameter_groups() for p in group.parameters.values()]
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)


def train(method: Method, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        out = method(batch(method, step))
        optimizer.zero_grad()
        out.loss.backward()
        method.after_backward(Progress(step, STEPS, 3))
        optimizer.step()
        with torch.no_grad():
            method.after_step([out.carry], Progress(step + 1, STEPS, 3))
        losses.append(out.loss.item())
    return losses


def snapshot(method: Method) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def test_gradient_reaches_every_trainable_parameter_and_nothing_else(name: str) -> None:
    method = build(name)
    out = method(batch(method))
    assert out.loss.shape == ()
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    for key, parameter in method.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
        elif key.startswith("backbone."):
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key
    grouped = [key for group in method.parameter_groups() for key in group.parameters]
    assert sorted(grouped) == sorted(key for key, p in method.named_parameters() if p.requires_grad)


def test_what_a_step_reports_is_detached(name: str) -> None:
    method = build(name)
    out = method(batch(method))
    for key, value in out.metrics.items():
        assert value.shape == (), key
        assert not value.requires_grad, key
        assert torch.isfinite(value), key
    assert not any(value.requires_grad for value in out.carry.values())
    assert out.features is not None
    assert not out.features.requires_grad
    assert out.features.shape == (COUNT, method.encoder().spec.feature_dim)


def test_evaluation_pass_changes_no_tensor_of_the_state(name: str) -> None:
    method = build(name)
    train(method, optimizer_for(method), 0, 2)
    before = snapshot(method)
    method.eval()
    with torch.no_grad():
        method.encoder()(batch(method, 5).views[0].image)
        method(batch(method, 5))
    assert_same(before, snapshot(method))


def test_forward_changes_nothing_but_batch_statistics(name: str) -> None:
    method = build(name)
    before = snapshot(method)
    method(batch(method))
    changed = {key for key, value in method.state_dict().items() if not torch.equal(before[key], value)}
    assert not {key for key in changed if key.rpartition(".")[2] not in STATISTICS}


def test_state_loads_into_a_fresh_method_and_gives_the_same_next_loss(name: str) -> None:
    method = build(name)
    train(method, optimizer_for(method), 0, 2)
    fresh = build(name, seed=1)
    assert fresh(batch(fresh, 3)).loss.item() != method(batch(method, 3)).loss.item()
    fresh.load_state_dict(method.state_dict(), strict=True)
    assert torch.equal(fresh(batch(fresh, 3)).loss, method(batch(method, 3)).loss)


def test_equal_seeds_give_equal_losses(name: str) -> None:
    first, second = build(name), build(name)
    losses = train(first, optimizer_for(first), 0, 2)
    assert losses == train(second, optimizer_for(second), 0, 2)
    assert losses[0] != losses[1]


def test_resumed_run_is_the_run_that_never_stopped(name: str) -> None:
    whole = build(name)
    whole_optimizer = optimizer_for(whole)
    losses = train(whole, whole_optimizer, 0, STEPS)

    first = build(name)
    first_optimizer = optimizer_for(first)
    again = train(first, first_optimizer, 0, 3)
    method_state, optimizer_state = copy.deepcopy((first.state_dict(), first_optimizer.state_dict()))
    second = build(name, seed=1)
    second_optimizer = optimizer_for(second)
    second.load_state_dict(method_state)
    second_optimizer.load_state_dict(optimizer_state)
    again += train(second, second_optimizer, 3, STEPS)

    assert again == losses
    assert_same(whole.state_dict(), second.state_dict())
    for a, b in zip(
        whole_optimizer.state_dict()["state"].values(), second_optimizer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_paper_and_default_sections_stand_and_are_valid(name: str) -> None:
    cls = load("methods", method_case(name)[0])
    assert cls.paper.startswith("https://")
    for section, group in (("optimizer", "optimizers"), ("schedule", "schedules")):
        values = dict(cls.defaults[section])
        load(group, values.pop("name")).Options.parse(values)


@pytest.mark.slow
def test_forward_is_one_graph_that_serves_every_step(name: str) -> None:
    method, graphs = build(name), CompileCounter()
    method.compile(fullgraph=True, dynamic=False, backend=graphs)
    train(method, optimizer_for(method), 0, 3)
    assert graphs.frame_count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_step_does_not_wait_for_the_device(name: str) -> None:
    method = build(name).cuda()
    data = batch(method)
    data.views = [View(view.image.cuda()) for view in data.views]
    data.labels = torch.arange(COUNT, device="cuda") % 4
    data.schedule = {key: value.cuda() for key, value in data.schedule.items()}
    optimizer = optimizer_for(method)
    for step in range(2):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may set libraries up
        try:
            out = method(data)
            out.loss.backward()
            method.after_backward(Progress(step, STEPS, 3))
            optimizer.step()
            with torch.no_grad():
                method.after_step([out.carry], Progress(step + 1, STEPS, 3))
        finally:
            torch.cuda.set_sync_debug_mode("default")
