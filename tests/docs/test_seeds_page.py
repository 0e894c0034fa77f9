"""docs/seeds.md: every option that the older tools name is there, and every key of ours exists and takes its value."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from sslcli.config import schema
from sslcli.config.options import overrides_as_data
from sslcli.config.views_section import SHORT_KEYS
from sslcli.evaluation.selection import choose_evaluators
from sslcli.plugins import find, load

PAGE = (Path(__file__).parents[2] / "docs" / "seeds.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
GROUPS = {**schema.PLUGIN_SECTIONS, "views": "augmentations"}
METHODS = {plugin.name for plugin in find("methods")}
OWN = {"training": schema.TrainingOptions, "checkpoints": schema.CheckpointOptions}
KEY = re.compile(
    r"`((?:method|backbone|data|views|optimizer|schedule|training|checkpoints|callbacks)\.[\w.]+)(?:: ([^`]+))?`"
)

#: The names in each tool's code: `ModelParams` and `MoCoMethodParams`; the arguments of `Trainer` and of the classes
#: that it builds; the builders' arguments; what `solo.args` and the methods select; `cli/config/config.yaml`.
NAMED = {
    "untitled-ai": """
        encoder_arch shuffle_batch_norm embedding_dim dataset_name batch_size K dim m T eqco_alpha use_eqco_margin
        use_negative_examples_from_batch lr momentum weight_decay max_epochs final_lr_schedule_value transform_s
        transform_crop_size transform_apply_blur use_momentum_schedule loss_type use_negative_examples_from_queue
        use_both_augmentations_as_queries optimizer_name lars_warmup_epochs lars_eta use_vicreg_loss use_lagging_model
        exclude_matching_parameters_from_lars loss_constant_factor use_unit_sphere_projection invariance_loss_weight
        variance_loss_weight covariance_loss_weight variance_loss_epsilon projection_mlp_layers prediction_mlp_layers
        mlp_hidden_dim mlp_normalization prediction_mlp_normalization use_mlp_weight_standardization num_data_workers
        drop_last_batch pin_data_memory gather_keys_for_queue multi_gpu_training""",
    "AK_SSL": """
        method backbone feature_size image_size save_dir wandb_run checkpoint_interval reload_checkpoint verbose
        mixed_precision_training dataset batch_size start_epoch epochs optimizer weight_decay learning_rate eval_method
        train_dataset test_dataset top_k fine_tuning_data_proportion color_jitter_strength use_blur mean std
        projection_dim hidden_dim lambda_param moving_average_decay bottleneck_dim temp_student temp_teacher
        projection_num_layers norm_last_layer momentum_teacher num_crops use_bn_in_head center_momentum temperature K m
        projection_batch_norm projection_hidden_dim prediction_hidden_dim dim eps epsilon sinkhorn_iterations
        num_prototypes queue_length use_the_queue""",
    "PySSL": """
        backbone feature_size image_size mean std projection_dim hidden_dim lamda tau bottleneck_dim temp_s temp_t m K
        temperature hidden_dim_proj hidden_dim_pred epsilon sinkhorn_iterations num_prototypes queue_length
        use_the_queue num_crops""",
    "solo-learn": """
        name method backbone.name backbone.kwargs data.dataset data.train_path data.val_path data.format
        data.num_workers data.no_labels data.fraction augmentations rrc.enabled rrc.crop_min_scale rrc.crop_max_scale
        color_jitter.prob color_jitter.brightness color_jitter.contrast color_jitter.saturation color_jitter.hue
        grayscale.prob gaussian_blur.prob solarization.prob equalization.prob horizontal_flip.prob crop_size num_crops
        mean std debug_augmentations optimizer.name optimizer.batch_size optimizer.lr optimizer.classifier_lr
        optimizer.weight_decay optimizer.exclude_bias_n_norm_wd optimizer.kwargs.momentum optimizer.kwargs.eta
        optimizer.kwargs.clip_lr optimizer.kwargs.exclude_bias_n_norm optimizer.kwargs.betas scheduler.name
        scheduler.lr_decay_steps scheduler.min_lr scheduler.warmup_start_lr scheduler.warmup_epochs scheduler.interval
        momentum.base_tau momentum.final_tau momentum.classifier knn_eval.enabled knn_eval.k knn_eval.distance_func
        max_epochs accumulate_grad_batches precision devices num_nodes strategy accelerator sync_batchnorm
        performance.disable_channel_last seed checkpoint.enabled checkpoint.dir checkpoint.frequency
        checkpoint.keep_prev auto_resume.enabled auto_resume.max_hours resume_from_checkpoint wandb.enabled
        wandb.entity wandb.project wandb.offline dali.device dali.encode_indexes_into_labels auto_umap.enabled
        auto_umap.dir auto_umap.frequency proj_hidden_dim proj_output_dim temperature pred_hidden_dim queue_size
        num_prototypes sk_iters sk_epsilon epoch_queue_starts freeze_prototypes_epochs norm_last_layer use_bn_in_head
        clip_grad freeze_last_layer student_temperature teacher_temperature warmup_teacher_temperature
        warmup_teacher_temperature_epochs lamb scale_loss sim_loss_weight var_loss_weight cov_loss_weight""",
    "lightly's command line": """
        input_dir output_dir embeddings checkpoint label_dir label_names_file pre_trained crop_padding model.name
        model.out_dim model.num_ftrs model.width criterion.temperature criterion.memory_bank_size optimizer.lr
        optimizer.weight_decay collate.input_size collate.cj_prob collate.cj_bright collate.cj_contrast collate.cj_sat
        collate.cj_hue collate.min_scale collate.random_gray_scale collate.gaussian_blur collate.sigmas
        collate.kernel_size collate.vf_prob collate.hf_prob collate.rr_prob collate.rr_degrees loader.batch_size
        loader.shuffle loader.num_workers loader.drop_last trainer.gpus trainer.max_epochs trainer.precision
        trainer.enable_model_summary trainer.weights_summary checkpoint_callback.save_last
        checkpoint_callback.save_top_k checkpoint_callback.dirpath summary_callback.max_depth
        environment_variable_names seed""",
}


def rows(text: str) -> list[tuple[str, str]]:
    """The two cells of each row of a text's tables, without headers."""
    found = re.findall(r"^\| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    return [(theirs, ours) for theirs, ours in found if not ours.startswith(("---", "sslcli"))]


def named(text: str) -> set[str]:
    """Their names in a section's text and first cells, with what an abbreviated one leaves out."""
    names: set[str] = set(re.findall(r"`([\w.]+)`", re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)))
    for cell, _ in rows(text):
        prefix = ""
        for name in re.findall(r"`([\w.]+)`", cell):
            name = prefix + name.removeprefix(".") if "." not in name[1:] and prefix else name
            names |= {name, name.removeprefix(prefix)}
            prefix = f"{name.rpartition('.')[0]}." if "." in name else ""
    return names


@pytest.mark.parametrize("tool", NAMED)
def test_every_option_that_a_tool_names_is_on_the_page(tool: str) -> None:
    assert sorted(set(NAMED[tool].split()) - named(SECTIONS[tool])) == []
    assert all(ours for _, ours in rows(SECTIONS[tool]))


def field(options: type[BaseModel], path: list[str]) -> Any:
    """The field of nested options at a path; AssertionError if there is none."""
    info = options.model_fields.get(path[0])
    assert info is not None, f"{options.__name__} has no {path[0]!r}"
    return info if len(path) == 1 else field(info.annotation, path[1:])  # type: ignore[arg-type]


def found(key: str, plugins: dict[str, str]) -> Any:
    """The field that a key means, None if it is none of a plugin's own options; AssertionError if it does not exist."""
    section, *path = key.split(".")
    if section in OWN:
        return field(OWN[section], path)
    if section == "callbacks":
        options = load("callbacks", path[0]).Options
        return field(options, path[1:]) if path[1:] else None
    if path == ["name"] or key in ("views.preset", "views.size"):
        return None
    if section == "views" and path[0] in SHORT_KEYS:
        return field(load("augmentations", path[0]).Options, path[1:]) if path[1:] else None
    named = plugins[section] if path[0] != "local_count" else "dino"
    return field(load(GROUPS[section], named).Options, path)


TABLES = [
    pytest.param(dict(pair.split("=") for pair in ours.split()), table, id=f"{tool}, table {number}")
    for tool, text in SECTIONS.items()
    for number, (ours, table) in enumerate(
        re.findall(r"^(?:<!-- ours: (.*?) -->\n)?((?:^\|.*\n)+)", text, re.MULTILINE), start=1
    )
]


@pytest.mark.parametrize(("plugins", "table"), TABLES)
def test_every_key_of_ours_exists_and_takes_the_value_beside_it(plugins: dict[str, str], table: str) -> None:
    for key, value in KEY.findall("\n".join(ours for _, ours in rows(table))):
        info = found(key, plugins)
        if info is not None and value and "MIN" not in value:  # which stands for a number
            kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            TypeAdapter(kind).validate_python(yaml.safe_load(value))


@pytest.mark.parametrize("row", [ours for text in SECTIONS.values() for _, ours in rows(text)])
def test_options_of_a_plugin_that_a_row_names_exist(row: str) -> None:
    for option, plugin in re.findall(r"`(\w+)` of (?:the presets )?`(\w+)`", row):
        groups = [group for group in GROUPS.values() if plugin in {each.name for each in find(group)}]
        assert any(option in load(group, plugin).Options.model_fields for group in groups), (option, plugin)
    method, *options = re.findall(r"`([\w.]+)`", row)[:20] or [""]
    if method in METHODS and row.startswith(f"`{method}`: "):
        assert options
        for option in options:
            field(load("methods", method).Options, option.split("."))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`(ssl eval RUN [^`]*)`", PAGE))))
def test_every_evaluation_takes_its_options(command: str) -> None:
    words = shlex.split(command)
    choose_evaluators(words[4], overrides_as_data(words[5:]))[words[4]].build()
