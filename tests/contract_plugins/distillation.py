"""Distillation in one plugin file: a student learns the features of a trained teacher, pooled and by place."""

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from sslcli.contracts.method import Method, MethodOptions, Step
from sslcli.runs.teacher import Teacher


class DistillationOptions(MethodOptions):
    """Options of distillation."""

    teacher: str
    """A run, a backbone file, or the name of a backbone with published weights (`torchvision/resnet50`)."""
    teacher_options: dict[str, object] = Field(default_factory=dict)
    """Options of a teacher that is named."""
    tokens: float = Field(default=1.0, ge=0)
    """Weight of the loss of the tokens, beside that of the pooled features."""


class Distillation(Method):
    """Predicts a frozen teacher's features: one minus their cosine similarity."""

    Options = DistillationOptions
    view_count = 1
    frozen = ("teacher",)

    def __init__(self, backbone, options, run):
        super().__init__(backbone, options, run)
        size = max(run.view_sizes, default=224)
        self.teacher = Teacher(options.teacher, run.data, size, options.teacher_options)
        dims = backbone.spec.feature_dim, self.teacher.backbone.spec.feature_dim
        self.pooled = nn.Linear(*dims)
        self.places = nn.Linear(*dims) if options.tokens else None

    @classmethod
    def recipe(cls, options, image_size, spec):
        return [{"crop_scale": [0.2, 1.0], "flip": 0.5}]

    @classmethod
    def defaults(cls, options, spec):
        return {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}, "schedule": {"name": "cosine"}}

    def forward(self, batch):
        images = batch.views[0].image
        student, teacher = self.backbone(images), self.teacher(images)
        loss = 1 - F.cosine_similarity(self.pooled(student.pooled).float(), teacher.pooled.float()).mean()
        metrics = {"pooled": loss.detach()}
        if self.places is not None and student.grid is not None and teacher.grid is not None:
            found = self.places(student.tokens).float()  # N×L×D, on the teacher's grid if that is another
            found = found.transpose(1, 2).unflatten(2, student.grid)
            found = F.adaptive_avg_pool2d(found, teacher.grid).flatten(2).transpose(1, 2)
            places = 1 - F.cosine_similarity(found, teacher.tokens.float(), dim=-1).mean()
            loss, metrics["tokens"] = loss + self.options.tokens * places, places.detach()
        return Step(loss, metrics, features=student.pooled.detach().float())
