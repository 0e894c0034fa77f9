"""The narrow transformer of masked methods: what a prediction depends on, and its sizes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sslcli.modules.masks import places
from sslcli.modules.token_predictor import TokenPredictor, TokenPredictorOptions
from sslcli.modules.transformer import sincos_positions

GRID = (4, 4)
OPTIONS = TokenPredictorOptions(depth=2, heads=2)


def built(side: int = 4) -> TokenPredictor:
    torch.manual_seed(0)
    return TokenPredictor(6, 5, side, OPTIONS, 8, "xavier").double()


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SEEN = torch.tensor([[0, 5, 9], [2, 3, 15]])
HIDDEN = torch.tensor([[[1, 2], [7, 8]], [[0, 1], [13, 14]]])


def test_a_prediction_is_that_of_visible_tokens_and_mask_tokens_at_their_positions() -> None:
    predictor = built()
    positions, cls = sincos_positions(4, 8)[0, 1:].double(), tokens(1)[:, 0]
    found = predictor(tokens(), SEEN, HIDDEN, GRID, cls)
    for image in range(2):
        for block in range(2):
            known = predictor.embed(tokens()[image]) + positions[SEEN[image]]
            asked = predictor.mask_token[0] + positions[HIDDEN[image, block]]
            sequence = torch.cat([known, asked, predictor.embed(cls[image : image + 1])])[None]
            expected = predictor.out(predictor.norm(predictor.blocks(sequence)))[0, 3:5]
            torch.testing.assert_close(found[image, block], expected)


def test_the_order_of_visible_patches_does_not_matter_and_a_smaller_grid_is_a_part() -> None:
    predictor, order = built(), torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        predictor(tokens()[:, order], SEEN[:, order], HIDDEN, GRID), predictor(tokens(), SEEN, HIDDEN, GRID)
    )
    small, seen, hidden = built(2), torch.tensor([[0, 1, 2]] * 2), torch.tensor([[[3]]] * 2)
    torch.testing.assert_close(
        predictor(tokens(), seen, hidden, (2, 2)), small(tokens(), seen, hidden, (2, 2)), rtol=1e-12, atol=0
    )


def test_positions_are_not_in_checkpoints() -> None:
    assert "positions" not in built().state_dict()
    assert "positions" in dict(built().named_buffers())


@pytest.mark.parametrize(("values", "message"), [
    ({"dim": 30}, "multiple of 4"), ({"dim": 64, "heads": 3}, "64 is not divisible by 3 heads; set heads"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenPredictorOptions(**values)


def test_there_is_a_head_for_every_32_dimensions() -> None:
    assert [TokenPredictorOptions().heads_of(dim) for dim in (16, 128, 384, 512)] == [1, 4, 12, 16]


def test_places_are_the_first_ones_of_each_image_and_again_where_there_are_fewer() -> None:
    chosen = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    assert places(chosen, 3).tolist() == [[1, 2, 4], [0, 4, 0], [0, 0, 0]]
