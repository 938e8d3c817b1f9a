"""Whether an artifact bears a signature that counts: the reader's side of ``provenance``."""

from pydantic import BaseModel, ConfigDict, Field
from securesystemslib.signer import SSlibKey

from finetune_api.layout import output_folder, provenance_object
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.artifacts.provenance import ADDRESS, PREDICATE_TYPE, STATEMENT_TYPE
from finetune_jobs.artifacts.signing import NotSignedError, load_public_key, unseal
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store


class Subject(BaseModel):
    """What a statement is about."""

    name: str
    digest: dict[str, str]


class Statement(BaseModel):
    """The part of a statement that says what it is about."""

    model_config = ConfigDict(populate_by_name=True)

    type: str = Field(alias="_type")
    subject: list[Subject]
    predicate_type: str = Field(alias="predicateType")


def require_signature(store: Store, digest: str, public_keys: list[str]) -> str:
    """The id of the key, one of those in PEM, that has signed where this artifact comes from. One signature that proves
    it is enough, whatever lies in the places of the other keys.

    Raises StageError: KeyUnusable, SignatureMissing, SignatureInvalid.
    """
    keys = [load_public_key(pem, f"spec.policy.signature.publicKeys[{n}]") for n, pem in enumerate(public_keys)]
    faults: list[StageError] = []
    for key in keys:
        place = provenance_object(digest, key.keyid)
        if content := store.get(place):
            try:
                _require_subject(content, key, digest, store.uri(place))
            except StageError as fault:
                faults.append(fault)
            else:
                return key.keyid
    if faults:
        raise faults[0]
    known = ", ".join(key.keyid[:12] for key in keys)
    raise StageError(
        Reason.SIGNATURE_MISSING,
        f"{store.uri(output_folder(Stage.PUBLISH, digest))} has no signature of a key that spec.policy.signature "
        f"accepts ({known}).",
    )


def _require_subject(content: bytes, key: SSlibKey, digest: str, place: str) -> None:
    try:
        signed = unseal(content, [key])
    except NotSignedError as error:
        raise StageError(Reason.SIGNATURE_INVALID, f"{place} proves nothing: {error}.") from None
    found = parse_json(signed, Statement, place, Reason.SIGNATURE_INVALID)
    if found.type != STATEMENT_TYPE or found.predicate_type != PREDICATE_TYPE:
        raise StageError(Reason.SIGNATURE_INVALID, f"{place} proves nothing: it says {found.predicate_type!r}.")
    if not any(each.digest.get(ADDRESS) == digest for each in found.subject):
        raise StageError(Reason.SIGNATURE_INVALID, f"{place} proves nothing: it was signed for another artifact.")
