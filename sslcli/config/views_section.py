"""Resolves a `views:` section: a preset, short keys that change every view, and single views by their index.

The result is the list of views with every operation and option, as in a run's resolved config.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from sslcli.contracts.views import OperationSpec, PresetOptions, RecipeSection, ViewSpec
from sslcli.plugins import load

from .document import Key
from .options import parse_into
from .preset_options import changed_views
from .problems import Problems, show

#: Operations whose name is a short key, in their default order. A view's `order` names those that come first.
DEFAULT_ORDER = (
    "flip", "autoaugment", "randaugment", "jitter", "grayscale", "blur", "solarize", "random_erasing",
)  # fmt: skip
#: Short keys of the random resized crop, and the option that each sets.
CROP_KEYS = {"crop_scale": "scale", "crop_ratio": "ratio", "interpolation": "interpolation"}
_KEYS_OF_CROP = {option: key for key, option in CROP_KEYS.items()}
SHORT_KEYS = (*CROP_KEYS, *DEFAULT_ORDER)


def resolve_views(
    section: Any, recipe: RecipeSection, default_size: int, problems: Problems, key: Key = ("views",)
) -> tuple[ViewSpec, ...]:
    """Returns the views that a section describes.

    Args:
        section: the config's `views:`: None, a preset's name, a mapping or a list of view specs.
        recipe: the method's own section, used if the config names no preset and lists no views.
        default_size: side of views in pixels if it is not set.
        problems: gets everything that is wrong.
        key: the section's, if it is that of a phase.
    """
    if isinstance(section, list):
        if not section:
            problems.add(key, "should have one view or more")
        listed = [((*key, str(index)), item) for index, item in enumerate(section)]
        return _build_all([(child, _as_view(item, child, problems)) for child, item in listed], default_size, problems)
    if isinstance(section, str):
        section = {"preset": section}
    if not isinstance(section, dict | None):
        problems.add(key, f"should be a preset, a mapping or a list of views, not {show(section)}")
        return ()
    section = {name: value for name, value in (section or {}).items() if value is not None}
    own = None if "preset" in section or isinstance(recipe, Mapping) else recipe
    if isinstance(recipe, Mapping) and "preset" not in section:
        section = {**recipe, **section}
    size = section.pop("size", default_size)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        problems.add((*key, "size"), f"should be a side in pixels, 1 or more, not {show(size)}")
        return ()
    name = section.pop("preset", None)
    if not isinstance(name, str) and own is None:
        problems.add(key, "should name a preset, or be a list of views")
        return ()
    single = {k: section.pop(k) for k in list(section) if k.isdecimal()}
    if own is None:
        views = _preset_views(str(name), section, size, key, problems)
    else:
        views = _listed_views(own, section, size, key, problems)
    if not views:
        return ()
    if single:
        views = [{**view, "count": 1} for view in views for _ in range(view.get("count", 1))]
    for index, changes in single.items():
        child = (*key, index)
        if int(index) >= len(views):
            problems.add(child, f"out of range: {len(views)} views, numbered from 0")
            continue
        views[int(index)] = _changed(views[int(index)], _as_view(changes, child, problems))
    keyed = [((*key, str(i)) if str(i) in single else key, view) for i, view in enumerate(views)]
    return _build_all(keyed, size, problems)


def _known(key: Key) -> list[str]:
    """Keys of every section, to suggest; that of a phase has no phases."""
    return [*SHORT_KEYS, "size", "preset", *(["phases"] if len(key) == 1 else [])]


def _changed(view: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A view with changed values; the options of an operation merge, as mappings do everywhere."""
    changes = {name: value for name, value in changes.items() if value is not None}
    if "operations" in changes:  # replaces all short keys
        return {**{name: value for name, value in view.items() if name not in (*SHORT_KEYS, "order")}, **changes}
    result = {**view, **changes}
    for name in DEFAULT_ORDER:
        if name in view and name in changes:
            old, new = (_as_options(name, value) for value in (view[name], changes[name]))
            if old and new:
                result[name] = {**old, **new}
    return result


def _as_options(operation: str, value: Any) -> dict[str, Any] | None:
    """The options that a short key's value stands for; None if it disables the operation or is invalid."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and operation == "jitter" and len(value) == 4:
        return dict(zip(("brightness", "contrast", "saturation", "hue"), value, strict=True))
    if isinstance(value, int | float) and not isinstance(value, bool) and value != 0:
        return {"p": float(value)}
    return None


def _as_view(item: Any, key: Key, problems: Problems) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    problems.add(key, f"should be a mapping that describes a view, not {show(item)}")
    return {}


def _preset_views(name: str, section: dict[str, Any], size: int, key: Key, problems: Problems) -> list[dict[str, Any]]:
    """A preset's views with the changes of a section's short keys; none after adding a problem."""
    preset = problems.load("augmentations", name, (*key, "preset"))
    if preset is None:
        return []
    if not hasattr(preset, "views"):
        problems.add((*key, "preset"), f"{name!r} is a single operation, not a preset of views")
        return []
    # A key that is also an option of the preset goes to the preset, unless it has the options of an operation.
    own = preset.Options.model_fields
    short = {k: v for k, v in section.items() if k in SHORT_KEYS and (k not in own or isinstance(v, dict | list))}
    options = {k: v for k, v in section.items() if k not in short}
    shared = {k: options.pop(k) for k in PresetOptions.model_fields if k in options and k not in own}
    parsed = parse_into(problems, preset.Options, options, "'views'", key, also=_known(key))
    changes = parse_into(problems, PresetOptions, shared, "'views'", key)
    if parsed is None or changes is None:
        return []
    views = preset.views(parsed, size)
    changes = parsed if isinstance(parsed, PresetOptions) else changes
    return [_changed(view, short) for view in changed_views(views, changes, size, key, problems)]


def _listed_views(
    recipe: Sequence[Mapping[str, Any]], section: dict[str, Any], size: int, key: Key, problems: Problems
) -> list[dict[str, Any]]:
    """The views that a method lists itself, with the changes of a section's short keys."""
    short = {k: v for k, v in section.items() if k in SHORT_KEYS}
    rest = {k: v for k, v in section.items() if k not in short}
    changes = parse_into(problems, PresetOptions, rest, "'views'", key, also=_known(key))
    views = [copy.deepcopy(dict(view)) for view in recipe]
    views = views if changes is None else changed_views(views, changes, size, key, problems)
    return [_changed(view, short) for view in views]


def _build_all(views: list[tuple[Key, dict[str, Any]]], size: int, problems: Problems) -> tuple[ViewSpec, ...]:
    built = [_build(dict(view), key, size, problems) for key, view in views]
    return tuple(view for view in built if view is not None)


def _build(view: dict[str, Any], key: Key, size: int, problems: Problems) -> ViewSpec | None:
    before = len(problems.lines)
    items = _items(view, key, problems)
    specs = [spec for child, item in items if (spec := _operation(child, item, problems)) is not None]
    geometric = [load("augmentations", spec.name).geometric for spec in specs]
    if len(problems.lines) == before and geometric != [True] + [False] * (len(specs) - 1):
        problems.add(key, "a view needs exactly one geometric operation (such as crop or resize), as its first")
    data = {**view, "operations": [spec.plain() for spec in specs]}
    data["size"] = size if view.get("size") is None else view["size"]
    found = parse_into(problems, ViewSpec, data, "a view", key, also=["order", *SHORT_KEYS])
    return found if len(problems.lines) == before else None


def _items(view: dict[str, Any], key: Key, problems: Problems) -> list[tuple[Key, dict[str, Any]]]:
    """Removes the operations from a view and returns them: its list of operations, or those of its short keys."""
    listed = view.pop("operations", None)
    if listed is None:
        return _from_short_keys(view, key, problems)
    for short in [k for k in view if k in SHORT_KEYS]:
        problems.add((*key, short), "cannot be combined with a list of operations: set it in the list")
        del view[short]
    if not isinstance(listed, list):
        problems.add((*key, "operations"), "should be a list")
        return []
    items: list[tuple[Key, dict[str, Any]]] = []
    for index, item in enumerate(listed):
        child = (*key, "operations", str(index))
        item = {"name": item} if isinstance(item, str) else item
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            items.append((child, item))
        else:
            problems.add(child, "should be the name of an operation, or a mapping with `name`")
    return items


def _from_short_keys(view: dict[str, Any], key: Key, problems: Problems) -> list[tuple[Key, dict[str, Any]]]:
    crop = {option: view.pop(short) for short, option in CROP_KEYS.items() if short in view}
    items: list[tuple[Key, dict[str, Any]]] = [
        (key, {"name": "crop", **{k: v for k, v in crop.items() if v is not None}})
    ]
    order = view.pop("order", None) or []
    if not isinstance(order, list) or not set(map(str, order)) <= set(DEFAULT_ORDER):
        problems.add((*key, "order"), f"should be a list of some of {', '.join(DEFAULT_ORDER)}, not {show(order)}")
        order = []
    for name in dict.fromkeys([*order, *DEFAULT_ORDER]):
        value = view.pop(name, None)
        child = (*key, name)
        if value in (None, 0):
            continue
        options = _as_options(name, value)
        if options is not None:
            items.append((child, {"name": name, **options}))
        else:
            problems.add(child, f"should be a probability (0: off) or a mapping of options, not {show(value)}")
    return items


def _operation(key: Key, item: dict[str, Any], problems: Problems) -> OperationSpec | None:
    name = item["name"]
    operation = problems.load("augmentations", name, key)
    if operation is None:
        return None
    if hasattr(operation, "views"):
        problems.add(key, f"{name!r} is a preset, not an operation")
        return None
    values = {option: value for option, value in item.items() if option != "name"}
    renamed = _KEYS_OF_CROP if name == "crop" and "operations" not in key else {}
    options = parse_into(problems, operation.Options, values, repr(name), key, renamed)
    return None if options is None else OperationSpec(name=name, options=options.plain())
