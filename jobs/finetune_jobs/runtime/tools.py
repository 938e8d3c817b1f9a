"""What the commands for people share: how to reach a store, and how they end. They run no stage and have no input file.

python -m finetune_jobs.trace --uri s3://models/team-a --dataset 0f3c…
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Final, NoReturn

from pydantic import ValidationError

from finetune_api.layout import output_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.references import SecretRef
from finetune_api.stages import Stage
from finetune_api.storage import STORE_SECRET_KEYS, STORE_SESSION_KEY, Addressing, Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime import logs
from finetune_jobs.runtime.full_disk import is_said
from finetune_jobs.store.s3 import Store

_EPILOG = """\
environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY  keys of the store; without them the pod's or machine's own identity

exit codes:
  {ok:2d}  done
  {fatal:2d}  cannot succeed unchanged: standard error says what to change
  {retriable:2d}  may succeed later: the store did not answer
"""

_FORMS: Final = {
    "endpoint": "the URL of a store without a path, e.g. https://s3.example.internal",
    "region": "the name of a region, e.g. eu-central-1",
}
"""What the options for a store take that argparse does not look at."""


def parser(name: str, does: str) -> argparse.ArgumentParser:
    """A command's parser, with the options that say how to reach the store."""
    logs.take_down()  # what a command says is for people, also in a pod
    made = argparse.ArgumentParser(
        prog=f"python -m finetune_jobs.{name}",
        description=does,
        epilog=_EPILOG.format(ok=ExitCode.OK, fatal=ExitCode.FATAL, retriable=ExitCode.RETRIABLE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_store(made)
    return made


def add_store(made: argparse.ArgumentParser, prefix: str = "") -> None:
    """Options for one store; ``prefix`` tells a second one apart."""
    made.add_argument(f"--{prefix}endpoint", metavar="URL", help="of an S3-compatible store (default: AWS)")
    made.add_argument(f"--{prefix}region", default="us-east-1", metavar="NAME", help="(default: %(default)s)")
    made.add_argument(
        f"--{prefix}addressing",
        type=Addressing,
        choices=list(Addressing),
        default=Addressing.AUTO,
        metavar="WHERE",
        help="where URLs have the bucket: Path, VirtualHost or Auto (default: %(default)s)",
    )


def open_store(options: argparse.Namespace, uri: str, prefix: str = "") -> Store:
    """The place that a URI names, as the options say. A second store may have keys of its own, in variables that begin
    with its prefix (``TO_AWS_ACCESS_KEY_ID``). Raises StageError: SecretMissing, if only some of them are set;
    SpecInvalid for an option that says no store."""
    name = prefix.replace("-", "_")
    secret = None
    if prefix and _has_own_keys(name.upper()):
        secret = SecretRef(name=prefix.strip("-"))
        for key in (*STORE_SECRET_KEYS, STORE_SESSION_KEY):
            os.environ[secret.at(key).variable] = os.environ.get(f"{name.upper()}{key}", "")
    given = {field: getattr(options, f"{name}{field}") for field in ("endpoint", "region", "addressing")}
    try:
        storage = Storage(**given, secret_ref=secret)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        raise StageError(
            Reason.SPEC_INVALID, f"--{prefix}{field} is {given[field]!r}: it must be {_FORMS[field]}."
        ) from None
    return Store.connect(storage, uri)


def _has_own_keys(prefix: str) -> bool:
    """Whether the environment has keys for the store of this prefix; then it has both, or none is used by mistake."""
    given = {name: os.environ.get(name, "").strip() for name in (f"{prefix}{key}" for key in STORE_SECRET_KEYS)}
    lacking = [name for name, value in given.items() if not value]
    if lacking and len(lacking) < len(given):
        there = next(name for name, value in given.items() if value)
        raise StageError(
            Reason.SECRET_MISSING,
            f"{lacking[0]} is empty, and {there} is set: set both, or neither to use the same keys for both stores.",
        )
    return not lacking


def split_artifact(uri: str) -> tuple[str, str]:
    """The results' root and the digest of ``s3://…/artifacts/<digest>``. Raises StageError (SpecInvalid)."""
    return split_output(uri, Stage.PUBLISH)


def split_output(uri: str, stage: Stage) -> tuple[str, str]:
    """The results' root and the digest of the folder of a stage's output. Raises StageError (SpecInvalid)."""
    place = uri.rstrip("/")
    digest = place.rpartition("/")[2]
    folder = f"/{output_folder(stage, digest)}"
    if not place.endswith(folder):
        form = output_folder(stage, "<digest>")
        raise StageError(Reason.SPEC_INVALID, f"{uri!r} is not of the form s3://bucket/prefix/{form}.")
    return place.removesuffix(folder), digest


def run_command(work: Callable[[], None]) -> NoReturn:
    """Run a command and exit with an ExitCode; what stands in its way goes to standard error."""
    try:
        work()
    except StageError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        sys.exit(ExitCode.RETRIABLE if error.retriable else ExitCode.FATAL)
    except OSError as error:
        if not is_said(error):
            raise
        text = f"The disk that holds {tempfile.gettempdir()} is full. Set TMPDIR to a folder on a larger one."
        sys.stderr.write(f"{Reason.SCRATCH_FULL}: {text}\n")
        sys.exit(ExitCode.FATAL)
    sys.exit(ExitCode.OK)
