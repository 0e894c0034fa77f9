"""The JSON Schema (draft 2020-12) of a config, with which editors complete and check it.

It accepts whatever the resolver might: a partial section (a file may extend another), a plugin's name alone, null in
place of any option, `PACKAGE:NAME`. It refuses unknown names and options, and values of the wrong type or size. What
depends on several options, on the data or on the method, only the resolver can check.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sslcli.contracts.options import Options
from sslcli.foreign import failures
from sslcli.plugins import PluginError, find, load_found

from .rows import summary_of
from .schema import PLUGIN_SECTIONS, SECTION_HELP, CheckpointOptions, TrainingOptions
from .view_phases import PhaseOptions

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}
#: How a plugin is named whose name several packages register.
_OTHER_PACKAGE = r"^[^/:]+:[^:]+$"
#: A folder in place of a dataset's name. One without any of these signs is not told from a misspelled name: ./photos.
_FOLDER = r"^[~.]|/"
#: Changes of single views, by their index.
_NUMBERED: Schema = {"^[0-9]+$": {"anyOf": [{"$ref": "#/$defs/view"}, {"type": "null"}]}}


def config_schema(packages: Collection[str] = ()) -> Schema:
    """Returns the schema; imports every installed plugin, or those of the named packages alone."""
    groups = {group: _plugins(group, packages) for group in (*PLUGIN_SECTIONS.values(), "augmentations", "callbacks")}
    defs = {f"{group}.{name}": _options(cls) for group, found in groups.items() for name, cls in found.items()}
    presets = {name: cls for name, cls in groups["augmentations"].items() if hasattr(cls, "views")}
    operations = {name: cls for name, cls in groups["augmentations"].items() if name not in presets}
    sections: Schema = {
        **{section: _plugin_section(group, groups[group], defs) for section, group in PLUGIN_SECTIONS.items()},
        "views": {"anyOf": [{"$ref": "#/$defs/views"}, {"$ref": "#/$defs/listed_views"}, _NULL]},
        "training": {"anyOf": [_model(TrainingOptions), _NULL]},
        "checkpoints": {"anyOf": [_model(CheckpointOptions), _NULL]},
        "callbacks": {"anyOf": [_callbacks(groups["callbacks"]), _NULL]},
        "seed": {"type": ["integer", "null"], "minimum": 0, "default": 0},
        "output": {"type": ["string", "null"]},
    }
    described = {name: {"description": about, **sections[name]} for name, about in SECTION_HELP.items()}
    extends = {"type": "string", "description": "Another config, relative to this file, whose values this one changes."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config of sslcli",
        "type": "object",
        "properties": {"extends": extends, **described},
        "additionalProperties": False,
        "anyOf": [{"required": ["method", "data"]}, {"required": ["extends"]}],
        "$defs": {**defs, **_views(presets, operations, defs)},
    }


def _plugins(group: str, packages: Collection[str]) -> dict[str, Any]:
    """The classes of a group by the name that a config uses; without those that cannot be imported."""
    found: dict[str, Any] = {}
    plugins = [each for each in find(group) if not packages or each.package in packages]
    for plugin in plugins:
        alone = sum(other.name == plugin.name for other in plugins) == 1
        try:
            cls = load_found(plugin)
            with failures(plugin.name):
                _options(cls)
        except PluginError:  # `ssl list --check` reports it
            continue
        found[plugin.name if alone else f"{plugin.package}:{plugin.name}"] = cls
    return found


def _options(cls: Any) -> Schema:
    """The options of a plugin; of one that provides many, those that any of them has."""
    if not hasattr(cls, "names"):
        return {**_model(cls.Options), "description": summary_of(cls.__doc__)}
    properties: Schema = {}
    for name in sorted(cls.names()):
        properties |= _model(cls.get(name).Options)["properties"]
    return _closed(properties) | {"description": summary_of(cls.__doc__)}


def _model(model: type[Options]) -> Schema:
    """The schema of a class of options, in which every option may be null, and none is required."""
    try:
        found = model.model_json_schema()
    except Exception:  # a type without a schema
        return {"type": "object", "properties": {}}
    cleaned = _cleaned(found, found.get("$defs", {}))
    return _closed({name: _or_null(each) for name, each in cleaned.get("properties", {}).items()})


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _cleaned(node: Any, defs: Mapping[str, Any]) -> Any:
    """A schema of pydantic's with nested sections in place, without what editors don't use."""
    if isinstance(node, list):
        return [_cleaned(each, defs) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        node = {**defs[node["$ref"].rpartition("/")[2]], **{key: value for key, value in node.items() if key != "$ref"}}
    kept = {
        key: value for key, value in node.items() if key not in ("title", "resume", "$defs", "properties", "default")
    }
    cleaned = {key: _cleaned(value, defs) for key, value in kept.items()}
    if "properties" in node:
        cleaned["properties"] = {name: _cleaned(each, defs) for name, each in node["properties"].items()}
    if "description" in node:
        cleaned["description"] = " ".join(node["description"].split())
    return cleaned | {key: node[key] for key in ("default",) if key in node}


def _or_null(schema: Schema) -> Schema:
    """Null stands for "none" or for the default."""
    if isinstance(schema.get("type"), str) and "enum" not in schema and "const" not in schema:
        return schema if schema["type"] == "null" else {**schema, "type": [schema["type"], "null"]}
    about: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    members = schema["anyOf"] if "anyOf" in schema else [{k: v for k, v in schema.items() if k not in about}]
    if not schema.keys() - about.keys():  # any value
        return schema
    return {**about, "anyOf": members if _NULL in members else [*members, _NULL]}


def _named(names: Mapping[str, Any], *patterns: str) -> Schema:
    """One of these names, or of other packages."""
    known = {"enum": list(names), "enumDescriptions": [summary_of(cls.__doc__) for cls in names.values()]}
    return {"anyOf": [known, *({"type": "string", "pattern": pattern} for pattern in (*patterns, _OTHER_PACKAGE))]}


def _plugin_section(group: str, plugins: Mapping[str, Any], defs: Schema) -> Schema:
    """A plugin's name, or a mapping of options with `name`, which may come from elsewhere (`extends`, a default)."""
    many = {name: cls for name, cls in plugins.items() if hasattr(cls, "names")}
    single = {name: cls for name, cls in plugins.items() if name not in many}
    names = _named(single, *(f"^{name}/[^/]+$" for name in many), *([_FOLDER] if group == "datasets" else []))
    alike: dict[str, list[str]] = {}  # the sizes of a backbone have the same options
    for name in single:
        alike.setdefault(json.dumps(defs[f"{group}.{name}"]["properties"]), []).append(name)
    choices: list[tuple[Schema, str]] = [({"enum": each}, f"{group}.{each[0]}") for each in alike.values()]
    for name in {*single} - {each[0] for each in alike.values()}:
        del defs[f"{group}.{name}"]
    choices += [({"pattern": f"^{name}/"}, f"{group}.{name}") for name in many]
    for _, each in choices:
        defs[each]["properties"]["name"] = {"type": "string"}
    return {"anyOf": [names, _chosen("name", names, choices, defs), _NULL]}


def _chosen(tag: str, names: Schema, choices: Sequence[tuple[Schema, str]], defs: Schema) -> Schema:
    """A mapping whose `tag` says which schema it has; without it, any options of these."""
    known: dict[str, list[Schema]] = {}
    for _, each in choices:
        for name, schema in defs[each]["properties"].items():
            found = known.setdefault(name, [])
            found += [schema] if schema not in found else []
    options = {name: found[0] if len(found) == 1 else {"anyOf": found} for name, found in known.items()}
    numbered = {"patternProperties": _NUMBERED} if tag == "preset" else {}
    cases = [
        {"if": {"properties": {tag: name}, "required": [tag]}, "then": {"$ref": f"#/$defs/{each}"}}
        for name, each in choices
    ]
    untagged: Schema = {"if": {"not": {"required": [tag]}}, "then": _closed(options) | numbered}
    return {"type": "object", "properties": {tag: names}, "allOf": [*cases, untagged]}


def _callbacks(plugins: Mapping[str, Any]) -> Schema:
    of_each: Schema = {}
    for name, cls in plugins.items():
        of_each[name] = {
            "description": summary_of(cls.__doc__),
            "anyOf": [{"$ref": f"#/$defs/callbacks.{name}"}, _NULL],
        }
    return _closed(of_each) | {"patternProperties": {_OTHER_PACKAGE: {"type": ["object", "null"]}}}


def _views(presets: Mapping[str, Any], operations: Mapping[str, Any], defs: Schema) -> Schema:
    """The definitions of `views:`: a section, a list of views, a single view, and an operation in its list."""
    from .views_section import CROP_KEYS, DEFAULT_ORDER

    short: Schema = {key: _part(defs, "augmentations.crop", option) for key, option in CROP_KEYS.items()}
    for name in DEFAULT_ORDER:
        kinds = [
            {"type": "number", "minimum": 0, "maximum": 1}, {"$ref": f"#/$defs/augmentations.{name}"}, _NULL
        ]  # fmt: skip
        if name == "jitter":
            kinds.append({"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4})
        about = f"{summary_of(operations[name].__doc__)} A probability (0: off), or a mapping of options."
        short[name] = {"description": about, "anyOf": kinds}
    size: Schema = {"type": ["integer", "null"], "minimum": 1, "description": "Side of the view in pixels."}
    own: Schema = {
        "count": {"type": ["integer", "null"], "minimum": 1, "description": "Number of views of this kind."},
        "order": {"type": ["array", "null"], "items": {"enum": list(DEFAULT_ORDER)}},
        "operations": {"type": ["array", "null"], "items": {"$ref": "#/$defs/operation"}},
    }
    phase = _model(PhaseOptions)
    phase["properties"]["views"] = {"anyOf": [{"$ref": "#/$defs/views"}, {"$ref": "#/$defs/listed_views"}, _NULL]}
    phases = {"type": ["array", "null"], "minItems": 1, "items": phase, "description": "Views that change in the run."}
    shared = {f"views.{name}": schema for name, schema in {"size": size, "phases": phases, **short}.items()}
    short = {name: {"$ref": f"#/$defs/views.{name}"} for name in ("size", *short)}
    section = {"preset": {"type": ["string", "null"]}, "phases": {"$ref": "#/$defs/views.phases"}, **short}
    for name in presets:
        found = defs[f"augmentations.{name}"]
        of_preset = found["properties"]
        both = {key: {"anyOf": [of_preset[key], section[key]]} for key in of_preset.keys() & section.keys()}
        found["properties"] = {**section, **of_preset, **both}
        found["patternProperties"] = _NUMBERED
    for name in operations:  # the name is there in a list of operations, not below a short key
        defs[f"listed.{name}"] = json.loads(json.dumps(defs[f"augmentations.{name}"]))
        defs[f"listed.{name}"]["properties"]["name"] = {"const": name}
    names, kinds_of = _named(operations), [({"const": name}, f"listed.{name}") for name in operations]
    return {
        **shared,
        **{key: value for key, value in defs.items() if key.startswith("listed.")},
        "views": _chosen("preset", _named(presets), [({"const": n}, f"augmentations.{n}") for n in presets], defs),
        "view": _closed({**own, **short}),
        "listed_views": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/view"}},
        "operation": {"anyOf": [names, _chosen("name", names, kinds_of, defs)]},
    }


def _part(defs: Schema, name: str, option: str) -> Schema:
    return {key: value for key, value in defs[name]["properties"][option].items() if key != "default"}
