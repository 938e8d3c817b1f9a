"""A metric container that attacks models with probes of garak (https://github.com/NVIDIA/garak) by name.

Parameters: ``probes``, names separated by commas (DEFAULT); ``limit``, the most prompts of a probe; ``max-tokens``, the
longest answer. Nothing is downloaded: a probe that needs that, or a detector that is a model itself, is refused.
docs/how-to/run-garak.md says which work.
"""

import contextlib
import json
import math
import os
import random
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

IN = Path(os.environ.get("METRICS_IN", "/metrics/in"))
MODELS = Path(os.environ.get("METRICS_MODELS", "/metrics/models"))
OUT = Path(os.environ.get("METRICS_OUT", "/metrics/out"))
LOG = Path(os.environ.get("METRICS_LOG", "/dev/termination-log"))
TMP = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 # a volume
FIGURE = "hitRate"
LIMIT, MAX_TOKENS = 64, 150
DEFAULT = (
    "ansiescape.AnsiRaw",
    "apikey.GetKey",
    "dan.Ablation_Dan_11_0",
    "encoding.InjectBase64",
    "encoding.InjectROT13",
    "exploitation.SQLInjectionEcho",
    "goodside.Tag",
    "latentinjection.LatentInjectionReport",
    "latentinjection.LatentInjectionResume",
    "malwaregen.TopLevel",
    "phrasing.PastTense",
    "promptinject.HijackHateHumans",
    "web_injection.MarkdownImageExfil",
    "web_injection.TaskXSS",
)
"""Probes whose prompts are in garak itself, and whose detectors look for texts."""
# Before garak is imported, which makes its folders.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ |= {name: str(TMP / "garak") for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}


def main() -> None:
    """Attack the base model and the artifact with the same prompts, one after the other."""
    request = json.loads((IN / "request.json").read_text(encoding="utf-8"))
    given, models = request["parameters"], request["models"]
    probes = [name for name in given.get("probes", ",".join(DEFAULT)).replace(" ", "").split(",") if name]
    limit, longest = number(given, "limit", LIMIT), number(given, "max-tokens", MAX_TOKENS)
    if not probes:
        refuse("The parameter probes names none: leave it out for those that this image runs by default.")
    prepare(limit)
    require_known(probes)
    found = {}
    for model, folders in (("base", (models["base"], "")), ("artifact", (models["artifact"], models["artifactBase"]))):
        found[model] = attack(probes, generator(*folders, longest))
    tools = {"garak": version("garak"), "transformers": version("transformers")}
    report = {"schemaVersion": 1, "measured": list(figures(found)), "tools": tools}
    partial = OUT / "metrics.json.partial"
    partial.write_text(json.dumps(report), encoding="utf-8")
    partial.rename(OUT / "metrics.json")


def prepare(limit: int) -> None:
    """garak's settings for this process: one answer to a prompt, since decoding is greedy."""
    from garak import _config

    _config.load_config()
    _config.run.generations, _config.run.soft_probe_prompt_cap, _config.run.seed = 1, limit, 0
    _config.system.parallel_attempts = _config.system.parallel_requests = False
    _config.transient.run_id = "run"
    from garak.harnesses.base import _initialize_runtime_services

    _initialize_runtime_services()


def require_known(probes: Iterable[str]) -> None:
    """End for a probe that garak does not have, or that cannot run here, before any model is loaded."""
    from garak import _plugins

    have = {name.removeprefix("probes.") for name, _ in _plugins.enumerate_plugins("probes")}
    if unknown := sorted(set(probes) - have):
        refuse(f"garak {version('garak')} has no probe {', '.join(unknown)}. Names are like {DEFAULT[0]}.")
    for name in probes:
        try:
            probe = _plugins.load_plugin(f"probes.{name}")
            detector = _plugins.load_plugin(f"detectors.{probe.primary_detector}")
        except Exception as error:  # noqa: BLE001 # whatever a plug-in raises, it cannot run
            said = " ".join(str(error).split())[:200] or type(error).__name__
            refuse(f"Probe {name} cannot run here, where nothing is downloaded: {said}")
        if type(detector).__module__ == "garak.detectors.packagehallucination":
            refuse(f"Probe {name} cannot run here, where nothing is downloaded: its detector reads lists of the hub.")


def generator(folder: str, base: str, longest: int) -> Any:
    """What garak asks: a local model, whole or an adapter on its base, with its chat template and greedy decoding."""
    import torch
    from garak.attempt import Message
    from garak.generators.base import Generator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole, device = MODELS / (base or folder), "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(whole)
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype="auto")
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, MODELS / folder)
    model = model.to(device).eval()
    room = (getattr(model.config, "max_position_embeddings", None) or 1 << 20) - longest

    class Local(Generator):
        """A model of this evaluation."""

        generator_family_name = "local"

        def _call_model(self, prompt: Any, generations_this_call: int = 1) -> list[Any]:
            turns = [{"role": turn.role, "content": turn.content.text} for turn in prompt.turns]
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(device)
            asked = ids["input_ids"].shape[1]
            if asked > room:
                return [None] * generations_this_call  # it has no room for an answer: not counted
            with torch.inference_mode():
                out = model.generate(
                    **ids, do_sample=False, max_new_tokens=longest, pad_token_id=tokenizer.pad_token_id or 0
                )
            text = tokenizer.decode(out[0, asked:], skip_special_tokens=True)
            return [Message(text=text)] * generations_this_call

    return Local(name=folder)


def attack(probes: list[str], model: Any) -> dict[str, tuple[int, int]]:
    """By probe: answers with which it had success, and those that could be judged."""
    from garak import _config, _plugins

    found = {}
    with (TMP / "garak.jsonl").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(sys.stderr):
        _config.transient.reportfile = log
        for name in probes:
            random.seed(0)  # garak draws the prompts below the limit: every model gets the same
            probe = _plugins.load_plugin(f"probes.{name}")
            detector = _plugins.load_plugin(f"detectors.{probe.primary_detector}")
            attempts = probe.probe(model)
            scores = [score for attempt in attempts for score in detector.detect(attempt) if score is not None]
            if not scores:
                refuse(f"Probe {name} has no prompt to which an answer could be judged.")
            found[name] = (sum(score >= _config.run.eval_threshold for score in scores), len(scores))
    return found


def figures(found: dict[str, dict[str, tuple[int, int]]]) -> Iterator[dict[str, Any]]:
    """The share of answers with which each probe had success, of each model, with its standard error."""
    for probe in sorted(found["artifact"]):
        yield {"figure": FIGURE, "part": probe, "models": {model: rate(*told[probe]) for model, told in found.items()}}


def rate(hits: int, n: int) -> dict[str, Any]:
    """Of one model."""
    share = hits / n
    return {"value": share, "n": n, "standardError": math.sqrt(share * (1 - share) / n)}


def number(given: dict[str, str], name: str, default: int) -> int:
    """A parameter that is a number."""
    text = given.get(name, str(default))
    if not text.isdecimal() or not int(text):
        refuse(f"The parameter {name} is {text!r}: it must be a number.")
    return int(text)


def refuse(why: str) -> NoReturn:
    """End with a message that the status of the FineTuneJob repeats."""
    if LOG.exists():
        LOG.write_text(why, encoding="utf-8")
    sys.exit(why)


if __name__ == "__main__":
    main()
