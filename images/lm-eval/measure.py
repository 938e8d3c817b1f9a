"""A metric container that runs tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) by name.

Parameters: ``tasks``, names separated by commas; ``limit``, the most documents of a task; ``num-fewshot``. Tasks and
their questions are in this image, in ``/tasks``, and in the folder that the FineTuneJob names as the container's data:
nothing is downloaded here. docs/how-to/run-lm-eval.md says how to add some.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

# Absolute: the program changes its folder.
IN = Path(os.environ.get("METRICS_IN", "/metrics/in")).absolute()
MODELS = Path(os.environ.get("METRICS_MODELS", "/metrics/models")).absolute()
OUT = Path(os.environ.get("METRICS_OUT", "/metrics/out")).absolute()
LOG = Path(os.environ.get("METRICS_LOG", "/dev/termination-log"))
TASKS = Path(os.environ.get("LM_EVAL_TASKS", "/tasks")).absolute()
DATA = Path(os.environ.get("METRICS_DATA", "/metrics/data")).absolute()
# A task's YAML can name functions, and its templates can call them: whoever may write tasks may run programs here.
TAKES_TASKS = os.environ.get("LM_EVAL_TASKS_FROM_DATA", "") == "true"
# Before lm-eval is imported, which imports what reads them.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


def main() -> None:
    """Run the tasks with the base model and with the artifact, one after the other."""
    request = json.loads((IN / "request.json").read_text(encoding="utf-8"))
    given, models = request["parameters"], request["models"]
    if not given.get("tasks"):
        refuse("The parameter tasks is missing: name tasks, separated by commas.")
    counts = {"limit": number(given, "limit"), "num_fewshot": number(given, "num-fewshot")}
    # Questions are named relative to this folder, as in the YAML of a task.
    os.chdir(joined(Path(tempfile.mkdtemp())))
    found = {
        "base": run(given["tasks"], f"pretrained={MODELS / models['base']}", counts),
        "artifact": run(given["tasks"], artifact(models), counts),
    }
    tools = {"lm-eval": version("lm-eval"), "transformers": version("transformers")}
    report = {"schemaVersion": 1, "measured": list(figures(found, request["figures"])), "tools": tools}
    partial = OUT / "metrics.json.partial"
    partial.write_text(json.dumps(report), encoding="utf-8")
    partial.rename(OUT / "metrics.json")


def folders() -> list[str]:
    """Where tasks are."""
    return [str(TASKS), *([str(DATA)] if TAKES_TASKS and DATA.is_dir() else [])]


def joined(folder: Path) -> Path:
    """All files of the image's tasks and of the data, as links: of two with one name, that of the data counts."""
    for root in (TASKS, DATA):
        for path in sorted(root.rglob("*")):
            if path.is_file() and (root == TASKS or path.suffix != ".py"):
                link = folder / path.relative_to(root)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
    return folder


def artifact(models: dict[str, str]) -> str:
    """lm-eval's arguments for what is served: a whole model, or an adapter on its base."""
    if models["artifactBase"]:
        return f"pretrained={MODELS / models['artifactBase']},peft={MODELS / models['artifact']}"
    return f"pretrained={MODELS / models['artifact']}"


def run(tasks: str, arguments: str, counts: dict[str, int | None]) -> dict[str, Any]:
    """lm-eval's results of one model; ``counts``: how many documents of a task, and examples in a prompt."""
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folders(), include_defaults=False)
    names = tasks.replace(" ", "").split(",")
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        refuse(f"There is no task {', '.join(unknown)}, but: {', '.join(sorted(manager.all_tasks))}.{why_not()}")
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=names,
        task_manager=manager,
        device="cuda" if torch.cuda.is_available() else "cpu",
        **counts,
        log_samples=False,
    )
    return results


def why_not() -> str:
    """What to do about tasks that the data has and that are not taken."""
    if TAKES_TASKS or not any(DATA.rglob("*.yaml")):
        return ""
    return " Of the data only questions are taken, unless the admin sets LM_EVAL_TASKS_FROM_DATA in the chart's values."


def number(given: dict[str, str], name: str) -> int | None:
    """A parameter that is a number; None where it is not given."""
    text = given.get(name)
    if text and not text.isdecimal():
        refuse(f"The parameter {name} is {text!r}: it must be a number.")
    return int(text) if text else None


def figures(found: dict[str, dict[str, Any]], wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Each wanted figure of each task: lm-eval names it ``acc,none``, or another filter's name after the comma, which
    tells the figures of a task with several filters apart."""
    for task, measured in found["artifact"]["results"].items():
        for key in measured:
            name, _, kind = key.partition(",")
            if name in wanted and task in found["artifact"]["n-samples"]:  # a group of tasks has none
                models = {model: figure(result, task, name, kind) for model, result in found.items()}
                part = task if kind == "none" else f"{task}, {kind}"
                yield {"figure": name, "part": part, "models": models}


def figure(result: dict[str, Any], task: str, name: str, kind: str) -> dict[str, Any]:
    """A figure of one model; some have no standard error, for which lm-eval writes "N/A", or NaN for one document."""
    measured = result["results"][task]
    error = measured.get(f"{name}_stderr,{kind}")
    told = {"value": measured[f"{name},{kind}"], "n": result["n-samples"][task]["effective"]}
    return told | ({"standardError": error} if isinstance(error, float) and math.isfinite(error) else {})


def refuse(why: str) -> NoReturn:
    """End with a message that the status of the FineTuneJob repeats."""
    if LOG.exists():
        LOG.write_text(why, encoding="utf-8")
    sys.exit(why)


if __name__ == "__main__":
    main()
