"""A publish stage in tests: the outputs of all stages before it, with their lineage, and its input."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from finetune_api.dataset import TaskType
from finetune_api.finetunejob import Output, Signing
from finetune_api.layout import Lineage
from finetune_api.references import SecretKeyRef
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_jobs.artifacts.artifact import ANSWERS, METRICS, Answer, write_answers
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN, pipeline_params, stage_input

KEY = SecretKeyRef(name="signing", key="private.pem")
BASE = "hf://acme/base@0123abc"


def private_pem(key: PrivateKeyTypes, password: str = "") -> str:
    """A private key as a Secret would have it."""
    locked = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked).decode()


def public_pem(key: PrivateKeyTypes) -> str:
    """Its public key."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def new_key(kind: str = "ed25519") -> PrivateKeyTypes:
    """A fresh key of one of the two kinds that are taken."""
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def answer(number: int) -> Answer:
    """An answer that tells the artifact from its base."""
    messages = [{"role": "user", "content": f"payment {number}"}]
    texts = {"label": "a", "base": "b", "tuned": "a", "artifact": "a"}
    return Answer(messages=messages, **texts, max_tokens=8, prompt_tokens=30)


def put_upstream(
    store: Store, folder: Path, rows: bytes = b"{}\n", *, source: str = "5" * 64, base: str = BASE, **lineage: Any
) -> Upstream:
    """Outputs of all stages before publish, of a data set with these ``rows`` and a base model; ``lineage`` says how
    they were made."""
    folder.mkdir(parents=True)
    chain = Upstream(source=source, model="6" * 64)

    def put(stage: Stage, files: dict[str, bytes], **facts: str) -> None:
        nonlocal chain
        made = folder / stage
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        history = Lineage(run=RUN, upstream=chain, base_model_uri=base, **lineage)
        chain = chain.with_output(stage, publish_folder(store, made, stage, facts=facts, lineage=history))

    put(Stage.PREPARE, {"train.jsonl": rows}, rowsTrain="320", labels="2")
    put(Stage.TRAIN, {"adapter_model.safetensors": b"adapter of " + rows}, steps="60")
    put(Stage.EXPORT, {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights of " + rows})
    asked = [answer(number) for number in range(8)]
    texts = {name: [getattr(each, name) for each in asked] for name in ("base", "tuned", "artifact")}
    measured = measure(TaskType.CLASSIFICATION, [each.label for each in asked], texts, ["a", "b"])
    metrics = {
        "goldenPrompts": 4,
        "scalars": {"samples": "8", "accuracyBase": "0.25", "accuracyArtifact": "0.95"},
        "measurements": measured.model_dump(mode="json", by_alias=True),
    }
    write_answers(folder / "answers", asked)
    answers = (folder / "answers").read_bytes()
    put(Stage.EVALUATE, {ANSWERS: answers, METRICS: json.dumps(metrics).encode()})
    return chain


def publish_input(
    s3: SeaweedFS, store: Store, chain: Upstream, *, signed: bool = False, name: str = "transactions", **fields: Any
) -> StageInput:
    """What the operator would write for publish."""
    signing = Signing(secret_key_ref=KEY) if signed else None
    output = Output(uri=store.uri(), name=name, signing=signing)
    params = pipeline_params([store.uri("rows.csv")], output)
    return stage_input(Stage.PUBLISH, s3.storage, output, params, chain, **{"base_model_uri": BASE} | fields)
