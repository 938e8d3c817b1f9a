"""Signatures: DSSE envelopes, made and opened with keys in PEM.

The envelope (https://github.com/secure-systems-lab/dsse) and the key ids are securesystemslib's, the arithmetic is
cryptography's. Two kinds of keys are taken: Ed25519, and ECDSA on P-256, which key management services offer.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from finetune_api.finetunejob import Output
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
"""in-toto's type of a statement in an envelope."""
_KINDS: Final = "only Ed25519 and ECDSA on the curve P-256 are"


class NotSignedError(Exception):
    """An envelope was not signed by the keys that count, or not over these bytes; the text says which."""


def signer_of(output: Output, environment: Mapping[str, str] = os.environ) -> CryptoSigner | None:
    """The key that signs what is published; None if the output names none.

    Raises StageError: SecretMissing without a value, KeyUnusable for one that is no such key. Neither quotes it.
    """
    if output.signing is None:
        return None
    reference = output.signing.secret_key_ref
    pem = environment.get(reference.variable, "")
    if not pem.strip():
        raise StageError(
            Reason.SECRET_MISSING,
            f"{reference.variable} is empty: Secret {reference.name!r} must contain a private key under "
            f"{reference.key!r}.",
        )
    return load_signer(pem, f"Key {reference.key!r} of Secret {reference.name!r}")


def load_signer(pem: str, place: str) -> CryptoSigner:
    """A private key; ``place`` is its name for people. Raises StageError (KeyUnusable)."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        raise _unusable(place, "is encrypted with a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable(place, "is not a private key in PEM") from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return CryptoSigner(key)
    raise _unusable(place, f"is a {type(key).__name__}, and {_KINDS} accepted")


def load_public_key(pem: str, place: str) -> SSlibKey:
    """A public key, as ``load_signer``."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable(place, "is not a public key in PEM") from None
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return SSlibKey.from_crypto(key)
    raise _unusable(place, f"is a {type(key).__name__}, and {_KINDS} accepted")


def seal(payload: bytes, signer: CryptoSigner) -> bytes:
    """The envelope with a signed payload, as JSON."""
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode()


def unseal(content: bytes, keys: Sequence[Key]) -> bytes:
    """The payload of an envelope that one of the keys has signed. Raises NotSignedError."""
    try:
        envelope = Envelope.from_dict(json.loads(content))
        envelope.verify(list(keys), 1)
    except VerificationError:
        raise NotSignedError("its signature does not match its content, or was made with another key") from None
    except (FormatError, ValueError, KeyError, TypeError, AttributeError):
        raise NotSignedError("it is not a DSSE envelope") from None
    if envelope.payload_type != PAYLOAD_TYPE:
        raise NotSignedError(f"it contains {envelope.payload_type!r}, not {PAYLOAD_TYPE!r}")
    return envelope.payload


def _unusable(place: str, fault: str) -> StageError:
    return StageError(Reason.KEY_UNUSABLE, f"{place} {fault}.")
