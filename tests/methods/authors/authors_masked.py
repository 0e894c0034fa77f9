"""MAE and I-JEPA, step by step as their authors' code trains them, on a vision transformer written out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from authors_parts import BATCH, PER_EPOCH, TOTAL, AdamW, Authors, follow, warm_cosine
from torch import Tensor, nn

#: Patches of 4 pixels, D = 12, 3 heads.
PATCH, DIM, HEADS = 4, 12, 3


def drawn(step: int, count: int) -> Tensor:
    """(BATCH, count) in [0, 1), the same for sslcli and the authors."""
    return torch.rand(BATCH, count, generator=torch.Generator().manual_seed(1000 + step))


def positions(side: int, dim: int) -> Tensor:
    """get_2d_sincos_pos_embed: (side², dim), half of the numbers for the column, half for the row, each sines first."""
    table = torch.zeros(side * side, dim, dtype=torch.float64)
    for place in range(side * side):
        for half, at in enumerate((place % side, place // side)):
            for i in range(dim // 4):
                angle = at / 10000 ** (i / (dim / 4))
                table[place, half * dim // 2 + i] = math.sin(angle)
                table[place, half * dim // 2 + dim // 4 + i] = math.cos(angle)
    return table.float().double()  # sslcli keeps them in float32


class Block(nn.Module):
    """timm's Block, with sslcli's names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        found = []
        for a, b, c in zip(*(each.chunk(self.heads, dim=-1) for each in (q, k, v)), strict=True):
            weights = (a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(dim=-1)
            found.append(weights @ c)
        x = x + self.attn["proj"](torch.cat(found, dim=-1))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Encoder(nn.Module):
    """A vision transformer of one block with a class token and fixed positions."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, DIM, PATCH, stride=PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.register_buffer("pos_embed", torch.cat([torch.zeros(1, DIM), positions(side, DIM)])[None])
        self.blocks = nn.Sequential(Block(DIM, HEADS))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        if keep is not None:
            x = chosen(x, keep)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.blocks(torch.cat([cls, x], dim=1)))


class Narrow(nn.Module):
    """The parts of a decoder or predictor."""

    def __init__(self, dim: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(DIM, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.Sequential(Block(dim, heads))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, outputs)


def chosen(x: Tensor, places: Tensor) -> Tensor:
    return torch.stack([each[at] for each, at in zip(x, places, strict=True)])


class MAE(Authors):
    """mae: models_mae.py with `--norm_pix_loss`, main_pretrain.py; timm's add_weight_decay spares vectors."""

    def __init__(self, side: int, base: float) -> None:
        super().__init__()
        self.side, self.base = side, base
        self.backbone = Encoder(side)
        self.decoder = Narrow(8, 2, PATCH * PATCH * 3)
        self.optimizer = AdamW(self.parameters(), 0.05, decayed=False)
        self.optimizer.beta2 = 0.95

    def patchify(self, images: Tensor) -> Tensor:
        found = torch.zeros(len(images), self.side**2, PATCH * PATCH * 3, dtype=images.dtype)
        for place in range(self.side**2):
            top, left = place // self.side * PATCH, place % self.side * PATCH
            for p in range(PATCH):
                for q in range(PATCH):
                    at = 3 * (PATCH * p + q)
                    found[:, place, at : at + 3] = images[:, :, top + p, left + q]
        return found

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        images, length = views[0], self.side**2
        noise = drawn(t, length)
        count = int(length * (1 - 0.75))
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        mask = chosen(torch.cat([torch.zeros(count), torch.ones(length - count)]).expand(len(images), -1), restore)
        x = self.decoder.embed(self.backbone(images, shuffle[:, :count]))
        tokens = self.decoder.mask_token.expand(len(images), length - count, -1)
        whole = chosen(torch.cat([x[:, 1:], tokens], dim=1), restore) + positions(self.side, 8)
        x = self.decoder.norm(self.decoder.blocks(torch.cat([x[:, :1], whole], dim=1)))
        prediction, target = self.decoder.out(x)[:, 1:], self.patchify(images)
        target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
        loss = ((prediction - target) ** 2).mean(dim=-1)
        loss = (loss * mask).sum() / mask.sum()
        self.backward(loss)
        self.optimizer.step(warm_cosine(self.base, t, 5))
        return loss.item()


class IJEPA(Authors):
    """ijepa: train.py, masks/multiblock.py, models/vision_transformer.py, helper.py.

    As sslcli documents, here too: blocks may touch the last row and column, the context has `fewest` patches instead of
    the fewest of the batch, the network has a class token, and schedules begin at step 0.
    """

    def __init__(self, side: int, blocks: int, scale: float, fewest: int, base: float) -> None:
        super().__init__()
        self.side, self.blocks, self.scale, self.fewest, self.base = side, blocks, scale, fewest, base
        self.backbone, self.predictor = Encoder(side), Narrow(8, 2, DIM)
        self.momentum_encoder = nn.ModuleDict({"backbone": Encoder(side)})
        self.momentum_encoder.requires_grad_(False)
        self.optimizer = AdamW(self.parameters(), 0.04, decayed=False)

    def size(self, draw: float, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int]:
        patches = int(self.side**2 * (scale[0] + draw * (scale[1] - scale[0])))
        shape = ratio[0] + draw * (ratio[1] - ratio[0])
        h, w = (round(math.sqrt(each)) for each in (patches * shape, patches / shape))
        return min(h, self.side - 1), min(w, self.side - 1)

    def block(self, size: tuple[int, int], corner: list[float]) -> list[int]:
        top, left = (int(at * (self.side - length + 1)) for at, length in zip(corner, size, strict=True))
        return [(top + i) * self.side + left + j for i in range(size[0]) for j in range(size[1])]

    def masks(self, draws: list[float]) -> tuple[list[int], list[list[int]]]:
        """Of one image: the patches of the context, and those of each target."""
        size = self.size(draws[0], (self.scale, self.scale), (1.0, 1.0))
        targets = [self.block(size, draws[4 + 2 * b : 6 + 2 * b]) for b in range(self.blocks)]
        within = self.block(self.size(draws[1], (0.85, 1.0), (1.0, 1.0)), draws[2:4])
        hidden = {place for target in targets for place in target}
        context = [place for place in within if place not in hidden]
        context += [place for place in range(self.side**2) if place not in hidden and place not in within]
        return context[: self.fewest], targets

    def step(self, views: list[Tensor], labels: Tensor, t: int) -> float:
        images, at = views[0], positions(self.side, 8)
        masks = [self.masks(each) for each in drawn(t, 4 + 2 * self.blocks).tolist()]
        context = torch.tensor([each for each, _ in masks])
        with torch.no_grad():
            whole = self.momentum_encoder["backbone"](images)[:, 1:]
            whole = F.layer_norm(whole, (DIM,))
        x = self.predictor.embed(self.backbone(images, context)[:, 1:]) + at[context]
        found, wanted = [], []
        for b in range(self.blocks):
            places = torch.tensor([targets[b] for _, targets in masks])
            asked = self.predictor.mask_token + at[places]
            out = self.predictor.norm(self.predictor.blocks(torch.cat([x, asked], dim=1)))
            found.append(self.predictor.out(out[:, x.shape[1] :]))
            wanted.append(chosen(whole, places))
        difference = (torch.cat(found) - torch.cat(wanted)).abs()
        loss = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
        self.backward(loss)
        self.optimizer.weight_decay = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * t / TOTAL))
        self.optimizer.step(self.rate(t))
        online = self.backbone.parameters()
        follow(self.momentum_encoder["backbone"].parameters(), online, 0.996 + t * (1.0 - 0.996) / TOTAL)
        return loss.item()

    def rate(self, t: int) -> float:
        """From a fifth of the base, and to a thousandth."""
        if t < PER_EPOCH:
            return self.base * (0.2 + 0.8 * t / PER_EPOCH)
        return warm_cosine(self.base, t, PER_EPOCH, final=0.001)
