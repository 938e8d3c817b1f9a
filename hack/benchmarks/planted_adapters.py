"""Wrong adapters, and wrong models under right ones, on the real vLLM for CPUs: how many of them verification refuses.

Two FineTuneJobs of the local cluster have published their adapters alone (``make demo-full`` runs them). One server
with their base model takes the right ones and each wrong one while it runs, as the operator's pods do, and every one
must prove what was recorded of the right one. Then the right adapters are served on base models that are wrong. The
baseline is what the answers alone reveal. ``--work``: a folder that keeps what was made and found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.export import ExportFormat
from finetune_api.serving_status import VerificationCheck
from hack.benchmarks.plantable import outputs
from hack.benchmarks.proofs import failed, kept, or_refused, seen
from hack.benchmarks.result import Result
from hack.cluster.console import ClusterError, say
from hack.demo.serving import adapter_jobs

if TYPE_CHECKING:
    from finetune_jobs.verification.observation import Promise

TRIES = 10
"""How often each right adapter is verified."""
SAMPLE = 20
"""Test examples of each verification."""
_BASE = "base"
"""Name of the model under the adapters."""
_NEVER_THERE = "adapter missing"
_ANSWERS = {"goldenTexts", "testSample"}


@dataclass(frozen=True)
class _Adapter:
    """A right one."""

    job: str
    folder: Path
    base: Path
    rank: int
    promise: Promise


def run(work: Path | None = None, tries: int = TRIES, samples: int = SAMPLE) -> Result:
    """Plant and verify; the value is the number of planted cases that are refused. Raises ClusterError: the jobs have
    not published adapters of one base."""
    if work is None:
        with tempfile.TemporaryDirectory(prefix="finetune-planted-") as folder:
            return run(Path(folder), tries, samples)
    work.mkdir(parents=True, exist_ok=True)
    adapters = _published(work, samples)
    good, wrong = _on_their_base(work, adapters, tries)
    wrong |= _on_wrong_bases(work, adapters)
    refused = sum(bool(failed(checks)) for checks in wrong.values())
    return Result(
        name="planted_adapters",
        value=refused,
        unit=f"of {len(wrong)} planted cases refused",
        baseline=sum(bool(_ANSWERS & set(failed(checks))) for checks in wrong.values()),
        goal=f"all refused, and each right adapter passes in {tries} of {tries} tries",
        details={
            "right ones passed": f"{sum(not failed(checks) for checks in good.values())} of {len(good)}",
            **{name: seen(checks) for name, checks in (good | wrong).items()},
        },
    )


def _published(work: Path, samples: int) -> list[_Adapter]:
    from finetune_jobs.artifacts.artifact import BASE_REF, BaseRef
    from finetune_jobs.base.documents import read_json

    found = []
    for name in (str(job["metadata"]["name"]) for job in adapter_jobs()):
        with outputs(name, work) as published:
            if published.model.format != ExportFormat.ADAPTER:
                raise ClusterError(f"FineTuneJob {name} has published {published.model.format}, not an adapter")
            folder = published.fetch(published.model.folder, "artifact")
            ref = read_json(folder / BASE_REF, BaseRef)
            base = published.fetch(ref.folder, f"base-{ref.digest[:12]}")
            found.append(_Adapter(name, folder, base, ref.rank, published.promise(samples)))
    return found


def _on_their_base(
    work: Path, adapters: Sequence[_Adapter], tries: int
) -> tuple[dict[str, list[VerificationCheck]], dict[str, list[VerificationCheck]]]:
    """What is found of the right adapters, and of the wrong ones, on one server."""
    from finetune_jobs.verification.vllm import VllmAdapters
    from tests.support.planted_adapters import PLANTS, write_adapter

    good: dict[str, list[VerificationCheck]] = {}
    wrong: dict[str, list[VerificationCheck]] = {}
    with _Server(work, adapters[0].base, adapters) as server:
        for adapter, other in zip(adapters, reversed(adapters), strict=True):
            folders = {plant.name: work / f"{adapter.job}-{plant.key}" for plant in PLANTS}
            for plant in PLANTS:
                shutil.rmtree(folders[plant.name], ignore_errors=True)
                write_adapter(folders[plant.name], adapter.folder, plant)
            folders["another adapter"] = other.folder

            def ask(name: str, folder: Path | None, adapter: _Adapter = adapter) -> list[VerificationCheck]:
                def serve() -> list[VerificationCheck]:
                    url = server.url()
                    if folder is None:
                        return _prove(url, name, adapter.promise)
                    VllmAdapters(url).load(name, str(folder))
                    try:
                        return _prove(url, name, adapter.promise)
                    finally:
                        VllmAdapters(url).unload(name)

                return kept(work / f"{name}.checks.json", name.replace("--", ": "), serve)

            for number in range(1, tries + 1):
                name = f"{adapter.job}--right-{number}"
                good[name] = ask(name, adapter.folder)
            for case, folder in [*folders.items(), (_NEVER_THERE, None)]:
                name = f"{adapter.job}--{case.replace(' ', '-')}"
                wrong[name] = ask(name, folder)
    return good, wrong


def _on_wrong_bases(work: Path, adapters: Sequence[_Adapter]) -> dict[str, list[VerificationCheck]]:
    """What is found of right adapters on a model that is not theirs. One of them is enough to refuse the server, and
    so is the model itself, which clients can ask, too."""
    from safetensors.torch import load_file

    from finetune_jobs.verification.checks import base_check
    from finetune_jobs.verification.tolerance import tolerance
    from finetune_jobs.verification.vllm import VllmAdapters, VllmServer
    from tests.support.planted import LOST_LAYER, WRONG_ROPE, Plant, write_artifact

    found: dict[str, list[VerificationCheck]] = {}
    base = adapters[0].base
    for plant in (WRONG_ROPE, Plant("RoPE theta x 0.1", rope=0.1), LOST_LAYER):
        name = f"base--{plant.name.replace(' ', '-')}"

        def serve(plant: Plant = plant, name: str = name) -> list[VerificationCheck]:
            folder = work / f"{name}.model"
            shutil.rmtree(folder, ignore_errors=True)
            write_artifact(folder, base, load_file(base / "model.safetensors"), plant, rounded=False)
            checks = []
            with _Server(work, folder, adapters) as server:
                for adapter in adapters:
                    VllmAdapters(server.url()).load(adapter.job, str(adapter.folder))
                    checks += _prove(server.url(), adapter.job, adapter.promise)
                plain = VllmServer(server.url())
                plain.served()
                texts = adapters[0].promise.references
                forced = [plain.log_probs(each) for each in texts]
                checks.append(base_check(texts, forced, tolerance(VllmServer.engine, ExportFormat.ADAPTER)))
            shutil.rmtree(folder)
            return checks

        found[name] = kept(work / f"{name}.checks.json", name.replace("--", ": "), serve)
    return found


class _Server:
    """vLLM with a base model, started when it is asked first: not at all, if an earlier run has found everything."""

    def __init__(self, work: Path, base: Path, adapters: Sequence[_Adapter]) -> None:
        self._work, self._base, self._adapters = work, base, adapters
        self._stack, self._url = ExitStack(), ""

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url(self) -> str:
        from finetune_operator.runtimes.plan import ServedAdapter, ServedModel
        from tests.support.vllm_process import vllm

        if not self._url:
            places = tuple(ServedAdapter(str(each.folder), each.job) for each in self._adapters)
            rank = max(each.rank for each in self._adapters)
            served = ServedModel(str(self._base), _BASE, adapters=places, rank=rank)
            self._url = self._stack.enter_context(vllm(served, self._work)).url
        return self._url


def _prove(url: str, name: str, promise: Promise) -> list[VerificationCheck]:
    """What an adapter proves under its name."""
    from finetune_jobs.verification.vllm import VllmServer
    from tests.support.planted import prove

    return or_refused(lambda: prove(VllmServer(url, adapter=name), promise))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--tries", type=int, default=TRIES)
    parser.add_argument("--samples", type=int, default=SAMPLE)
    result = run(**vars(parser.parse_args()))
    result.write()
    say(json.dumps(result.details, indent=1))
