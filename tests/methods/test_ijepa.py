"""I-JEPA: what context and targets are, who is trained, and what is exported."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from masked_helpers import altered, given_to, images, learned, masked, masked_batch
from pydantic import ValidationError
from torch import Tensor

from sslcli.contracts.method import Progress
from sslcli.methods import ijepa
from sslcli.methods.ijepa import IJEPAOptions
from sslcli.modules.masks import block_mask, block_size

SMALL = {"predictor": {"dim": 16, "depth": 1}}
SIDE = 14


def drawn(count: int = 2000, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Context, targets and weights of many images of 14 × 14 patches."""
    method = masked("ijepa", side=4 * SIDE, **SMALL, **options)
    return method.draw(masked_batch(method, torch.zeros(count, 3, 1, 1)), (SIDE, SIDE))


def test_targets_are_rectangles_of_the_stated_sizes_and_weights_count_each_patch_once() -> None:
    _, targets, weights = drawn(300)
    assert targets.shape == weights.shape == (300, 4, 40)
    for blocks, shares in zip(targets.tolist(), weights.tolist(), strict=True):
        sizes = set()
        for block, share in zip(blocks, shares, strict=True):
            counted = [place for place, weight in zip(block, share, strict=True) if weight]
            rows, columns = sorted({place // SIDE for place in counted}), sorted({place % SIDE for place in counted})
            assert counted == [row * SIDE + column for row in rows for column in columns]
            assert rows == list(range(rows[0], rows[-1] + 1))
            assert columns == list(range(columns[0], columns[-1] + 1))
            assert set(block) == set(counted)
            assert sum(share) == pytest.approx(1, rel=1e-5)
            sizes.add((len(rows), len(columns)))
        assert len(sizes) == 1
        assert sizes <= {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def test_what_it_says_that_is_seen_are_context_and_targets() -> None:
    method, view = masked("ijepa", **SMALL), images()
    batch = masked_batch(method, view)
    context, targets, _ = method.draw(batch, (4, 4))
    seen = method.visible_patches(batch)
    assert [*seen] == ["context", "target 1", "target 2", "target 3", "target 4"]
    for (index, patches), place in zip(seen.values(), (context, *targets.unbind(1)), strict=True):
        assert index == 0
        assert [row.nonzero().flatten().tolist() for row in patches] == [sorted({*row}) for row in place.tolist()]


def test_the_context_is_in_no_target_and_has_as_many_patches_in_all_images() -> None:
    context, targets, _ = drawn()
    assert context.shape == (2000, 49)
    hidden = torch.zeros(2000, SIDE**2).scatter(1, targets.flatten(1), 1)
    assert not hidden.gather(1, context).any()
    assert all(len(set(each)) == 49 for each in context[:200].tolist())


def authors_size(one: float, scale: tuple[float, float], ratio: tuple[float, float]) -> list[int]:
    """_sample_block_size of multiblock.py, given the random number."""
    patches = int(SIDE**2 * (scale[0] + one * (scale[1] - scale[0])))
    shape = ratio[0] + one * (ratio[1] - ratio[0])
    return [min(SIDE - 1, round(math.sqrt(each))) for each in (patches * shape, patches / shape)]


TARGETS, CONTEXT = ((0.15, 0.2), (0.75, 1.5)), ((0.85, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("ranges", [TARGETS, CONTEXT])
def test_sizes_are_the_authors_for_every_draw(ranges: tuple[tuple[float, float], tuple[float, float]]) -> None:
    draws = (torch.arange(300) + 0.3) / 300
    found = torch.stack(block_size(draws, (SIDE, SIDE), *ranges), dim=1)
    assert found.tolist() == [authors_size(one, *ranges) for one in draws.tolist()]


def authors_collator(images: int, steps: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """multiblock.py on 14 × 14 patches: of each step the share of images in whose context a patch is, and in whose
    targets; and the patches of a context."""
    generator = torch.Generator().manual_seed(seed)

    def draw(bound: int, count: int = 1) -> list[int]:
        return torch.randint(0, bound, (count,), generator=generator).tolist()

    seen, asked, lengths = torch.zeros(SIDE**2), torch.zeros(SIDE**2), []
    for _ in range(steps):
        (h, w), (eh, ew) = (
            authors_size(float(torch.rand(1, generator=generator)), *each) for each in (TARGETS, CONTEXT)
        )
        contexts = []
        for _ in range(images):
            hidden = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            for top, left in zip(draw(SIDE - h, 4), draw(SIDE - w, 4), strict=True):
                hidden[top : top + h, left : left + w] = True
                block = torch.zeros(SIDE, SIDE)
                block[top : top + h, left : left + w] = 1
                asked += block.flatten() / (4 * images * steps)
            (top,), (left,) = draw(SIDE - eh), draw(SIDE - ew)
            within = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            within[top : top + eh, left : left + ew] = True
            contexts.append((within & ~hidden).flatten().nonzero()[:, 0])
        fewest = min(map(len, contexts))
        lengths.append(fewest)
        for context in contexts:
            seen[context[:fewest]] += 1 / (images * steps)
    return seen, asked, torch.tensor(lengths).float()


@pytest.mark.slow
def test_context_and_targets_are_distributed_much_as_the_authors() -> None:
    """Theirs are cut to the fewest of a batch, here of 128 images as on each of their devices, and never touch the last
    row and column; ours have a quarter of the patches."""
    seen, asked, lengths = authors_collator(128, 40)
    context, targets, weights = drawn(5000)
    ours = torch.zeros(SIDE**2).index_add(0, context.flatten(), torch.ones(context.numel())) / 5000
    wanted = torch.zeros(SIDE**2).index_add(0, targets.flatten(), (weights > 0).float().flatten()) / (4 * 5000)
    assert lengths.mean() == pytest.approx(50, abs=4)
    assert ours.sum() == pytest.approx(49)
    assert wanted.sum() == pytest.approx(asked.sum().item(), abs=2)
    # Rows from above: how often patches in the middle columns are seen, and are asked for.
    for here, there in ((ours, seen), (wanted, asked)):
        rows, theirs = (each.view(SIDE, SIDE)[:, 2:-2].mean(1)[1:-1] for each in (here, there))
        assert (rows - theirs).abs().max() < 0.08
        assert torch.corrcoef(torch.stack([rows, theirs]))[0, 1] > 0.9


given = partial(given_to, "masked_features_and_metrics")


def test_predictions_see_the_context_alone_and_targets_the_whole_image() -> None:
    method, view = masked("ijepa", side=32, **SMALL), images(32)
    context, targets, weights = method.draw(masked_batch(method, view), (8, 8))
    unseen = torch.ones(8, 64).scatter(1, context, 0).bool()
    prediction, features = given(method, view)
    again, others = given(method, altered(view, unseen))
    assert torch.equal(prediction, again)
    assert not torch.isclose(features, others).all(dim=-1).any()
    assert not torch.isclose(given(method, altered(view, ~unseen))[0], prediction).all(dim=-1).any()
    whole = method.momentum_encoder.backbone(view).tokens
    torch.testing.assert_close(features[3, 1], whole[3, targets[3, 1]])
    # A patch that comes again has the same prediction, which does not count.
    image, block, last = (weights == 0).nonzero()[-1].tolist()
    first = int((targets[image, block] == targets[image, block, last]).nonzero()[0])
    assert weights[image, block, first] > 0
    torch.testing.assert_close(prediction[image, block, last], prediction[image, block, first])


def test_only_the_online_network_is_trained_and_the_copy_follows_along_a_line() -> None:
    method, view = masked("ijepa", momentum=0.9, **SMALL), images()
    step = method(masked_batch(method, view))
    step.loss.backward()
    assert all(p.grad is None for p in method.momentum_encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in method.backbone.parameters())
    assert method.encoder() is method.momentum_encoder.backbone
    assert torch.equal(step.features, method.encoder()(view).pooled)
    assert [method.options.momentum_at(t, 10) for t in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1.0])
    assert method.schedules()["momentum"](5) == pytest.approx(0.95)
    online, copied = method.backbone.norm.weight, method.momentum_encoder.backbone.norm.weight
    with torch.no_grad():
        online.add_(1.0)
        before = copied.clone()
        method.after_step([{}], Progress(6, 10, 5))
    torch.testing.assert_close(copied - before, torch.full_like(copied, 0.05))


def test_the_copy_draws_nothing_where_the_network_drops_paths() -> None:
    method = masked("ijepa", **SMALL)
    method.backbone.blocks[0].drop_path1.rate = 0.5
    assert method.momentum_encoder.backbone.blocks[0].drop_path1.rate == 0.0


@pytest.mark.slow
def test_it_learns_to_predict_ramps_and_its_targets_stay_apart() -> None:
    metrics = learned(masked("ijepa", momentum=0.95, **SMALL), 80, 2e-3)
    assert metrics[0]["explained"] < 0.2
    assert metrics[-1]["explained"] > 0.6
    assert min(each["target_std"] for each in metrics) > 0.3


def test_micro_batches_hide_what_the_whole_batch_does() -> None:
    method, view = masked("ijepa", **SMALL), images()
    batch = masked_batch(method, view)
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        half = masked_batch(method, view[part])
        half.index = batch.index[part]
        halves.append(method(half).loss)
    torch.testing.assert_close(torch.stack(halves).mean(), method(batch).loss)


def test_views_of_another_phase_may_be_smaller() -> None:
    method = masked("ijepa", **SMALL)
    assert method(masked_batch(method, images(12))).loss.isfinite()


@pytest.mark.parametrize(("values", "message"), [
    ({"target_scale": [0.3, 0.2]}, r"target_scale: should be the least and the largest, not \[0.3, 0.2\]"),
    ({"target_blocks": 5}, "target_blocks 5 of 0.2 of the patches could hide all of them"),
    ({"context_patches": 0.0}, "greater than 0"),
])  # fmt: skip
def test_what_leaves_nothing_to_predict_or_to_see_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IJEPAOptions.parse(values)


@pytest.mark.parametrize(("features", "dim"), [(48, 32), (192, 96), (384, 192), (768, 384), (1280, 384)])
def test_the_predictor_is_as_wide_as_the_authors_behind_their_encoders_and_narrower_behind_others(
    features: int, dim: int
) -> None:
    assert ijepa.predictor_dim(IJEPAOptions(), features) == dim


def test_blocks_begin_anywhere_that_they_fit_and_are_never_the_whole_grid() -> None:
    uniform = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    uniform[0], uniform[1] = 0.0, 1.0 - 2**-24
    height, width = block_size(uniform[:, 0], (8, 6), (0.2, 0.9), (0.5, 2.0))
    assert (height.min(), width.min()) >= (1, 1)
    assert (height.max(), width.max()) == (7, 5)
    mask = block_mask(uniform[:, 1:], (8, 6), height, width).view(-1, 8, 6)
    assert torch.equal(mask.flatten(1).sum(1), height * width)
    assert bool(mask[0, 0, 0])
    assert bool(mask[1, -1, -1])
    assert bool(mask.any(0).all())
