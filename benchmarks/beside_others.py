"""Images per second of whole SimCLR training steps: ours and those of lightly, lightly-train and stable-pretraining.

    python benchmarks/beside_others.py cifar10 DATA_ROOT [--width 16] [--batch 256] [--steps 20] [--output NAME]
    python benchmarks/beside_others.py photographs FOLDER --width 64 --batch 32 --steps 6 --warm-up 3 [--output NAME]
    python benchmarks/beside_others.py tables [--write-docs]

A step goes from the files to the updated weights (`tool_steps.py`: what each tool does, what cannot be equal). All
train our ResNet-18, on CIFAR-10 with the small stem, on photographs with torchvision's, at 224 px. Tools that are not
installed are left out. Ours are the steps of `ssl train` with log lines; none has monitors or checkpoints.

Each round runs every tool with all settings in processes of their own, one after the other; compiling and warm-up steps
are not measured. Ratios are of the same round. `defaults` has each tool without options, in the number of processes and
threads too (`made` says what that is); lightly and stable-pretraining, which have no default for it, get `--workers`.
In the others precision and memory format, an eager backbone, huge pages and workers are equal, so that only pipeline
and loop differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from page import table, write_part
from report import RESULTS, circumstances, is_installed, publish, say, summary
from tool_steps import DATA, DIFFERENCES, STEPS, Task, measure

#: What is compared: the precision, or None for each tool's defaults.
SETTINGS = {"defaults": None, "fp32 contiguous": "fp32", "bf16 channels_last": "bf16"}
PACKAGES = {tool: tool.replace("_", "-") for tool in STEPS if tool != "ours"}


def tasks(tools: Iterable[str], settings: Iterable[str], common: dict[str, Any]) -> dict[tuple[str, str], Task]:
    """All measurements of a round, by tool and settings."""
    return {(tool, name): Task(tool=tool, precision=SETTINGS[name], **common) for name in settings for tool in tools}


def measure_rounds(wanted: dict[tuple[str, str], Task], rounds: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Makes every measurement in a process of its own, one after the other, in each round."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {each: [] for each in wanted}
    spawn = multiprocessing.get_context("spawn")
    for number, ((tool, name), task) in itertools.product(range(rounds), wanted.items()):
        # A process reads it once. `ssl` asks for huge pages, the others' own commands do not.
        os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(tool == "ours" or task.precision is not None))
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found[tool, name].append(pool.submit(measure, task).result())
        say(f"round {number + 1}: {tool}, {name}: {found[tool, name][-1]['images_per_second']:.2f} images/s")
    return found


def compared(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns a row for each tool and settings: images per second, how the steps were made, ours relative to it."""
    speeds = {each: [one["images_per_second"] for one in measured] for each, measured in found.items()}
    rows = []
    for (tool, name), values in speeds.items():
        row = {
            "tool": tool,
            "settings": name,
            "images_per_second": summary(values, 2),
            "made": found[tool, name][0]["made"],
        }
        if tool != "ours" and ("ours", name) in speeds:
            pairs = zip(speeds["ours", name], values, strict=True)
            row["ours_relative"] = summary([our / their for our, their in pairs], 3)
        rows.append(row)
    return rows


def write_files(root: Path, folder: Path) -> None:
    """Writes CIFAR-10's training images as PNG files."""
    from torchvision.datasets import CIFAR10

    for index, (image, label) in enumerate(CIFAR10(root)):
        path = folder / str(label) / f"{index:05}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)


def read_reports() -> list[dict[str, Any]]:
    """The results that are there."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("beside-others-*.json"))]


def tables(reports: Sequence[dict[str, Any]]) -> str:
    """The tables of results, as Markdown, each with its command."""
    parts = []
    for report in reports:
        rows = []
        for row in report["rows"]:
            speed, made, ratio = row["images_per_second"], row["made"], row.get("ours_relative")
            how = f"{made['precision']}, {'channels_last' if made['channels_last'] else 'contiguous'}"
            beside = f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else ""
            rows.append([row["settings"], PACKAGES.get(row["tool"], "ours"), how, f"{speed['median']:,.1f}", beside])
        parts += [
            f"{report['network']}, batch {report['batch']}, {report['rows'][0]['made']['threads']} threads:\n",
            table(["settings", "tool", "made with", "images/s", "ours relative to it"], rows),
            f"Made by `{' '.join(report['command'])}`, {report['time']}, {report['processor']}, load average "
            f"{report['load_average']}, torch {report['torch']}, "
            + ", ".join(f"{name} {report[name]}" for name in PACKAGES.values()) + ".\n",
        ]  # fmt: skip
    return "\n".join(parts) or "Not measured yet on a quiet machine.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", choices=[*DATA, "tables"], help="what to train on; tables: of the results that are there"
    )
    parser.add_argument("root", type=Path, nargs="?", help="the folder with cifar-10-batches-py, or with photographs")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18; 64 is the usual one")
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--workers", type=int, default=2, help="processes of the others' loaders")
    parser.add_argument("--warm-up", type=int, default=8, help="steps before those that count; fill the loader's queue")
    parser.add_argument("--steps", type=int, default=20, help="steps that count, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTINGS")
    parser.add_argument("--tools", nargs="+", choices=STEPS, help="default: those that are installed", metavar="TOOL")
    parser.add_argument("--output", help="name of a JSON file to write under benchmarks/results/")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.data == "tables":
        text = tables(read_reports())
        print(text)
        if arguments.write_docs:
            write_part("beside", text)
        return
    tools = arguments.tools or ["ours", *(tool for tool, package in PACKAGES.items() if is_installed(package))]
    if missing := [PACKAGES[tool] for tool in tools if tool != "ours" and not is_installed(tool)]:
        parser.error(f"not installed: pip install {' '.join(missing)}")
    wanted = "cifar-10-batches-py" if arguments.data == "cifar10" else "."
    if arguments.root is None or not (arguments.root / wanted).is_dir():
        parser.error(f"root: no {wanted} in {arguments.root}; give the folder that holds the {arguments.data}")
    root = arguments.root.absolute()
    with tempfile.TemporaryDirectory() as folder:
        files = root
        if arguments.data == "cifar10" and "lightly_train" in tools:
            write_files(root, files := Path(folder))
        common = {name: getattr(arguments, name) for name in ("data", "width", "batch", "workers", "warm_up", "steps")}
        rows = compared(
            measure_rounds(tasks(tools, arguments.settings, {**common, "root": root, "files": files}), arguments.rounds)
        )
    size = DATA[arguments.data].size
    report = {
        "what": "images per second of SimCLR training steps, from the files to the updated weights; ours_relative: "
        "ours over the tool's, of the same round",
        "network": f"ResNet-18 of width {arguments.width}, {arguments.data} at {size} px",
        "rows": rows,
        "differences": {tool: text for tool, text in DIFFERENCES.items() if tool in tools},
        **common,
        "rounds": arguments.rounds,
        **circumstances(*PACKAGES.values()),
    }
    publish(report, arguments.output)
    print(tables([report]))


if __name__ == "__main__":
    main()
