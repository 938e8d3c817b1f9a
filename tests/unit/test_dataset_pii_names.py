"""Personal data: names, which a pipeline of spaCy finds beside the patterns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import spacy

from finetune_api.dataset import Pii
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading.inputs import find_names_model
from finetune_jobs.store.s3 import Store, StoredObject
from finetune_jobs.text.pii import Recognition
from finetune_jobs.text.pii.masking import Pseudonyms
from finetune_jobs.text.pii.ner import package_folder
from tests.support.personal_texts import found
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spaCy pipeline that knows a few names, and has a component that must not be loaded."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    ruler = nlp.add_pipe("entity_ruler")
    patterns = [
        ("PERSON", "Jane Miller"),
        ("GPE", "Leeds"),
        ("ORG", "Acme"),
        ("DATE", "yesterday"),
        ("MONEY", "ten pounds"),
    ]
    ruler.add_patterns([{"label": label, "pattern": pattern} for label, pattern in patterns])  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("pipeline")
    nlp.to_disk(folder / "en_names-1.0")
    return folder


def test_a_pipeline_of_spacy_finds_names_beside_the_patterns(pipeline: Path) -> None:
    text = "Jane Miller of Acme in Leeds paid ten pounds yesterday, says jane@example.com"
    recognition = Recognition(Pii(), ner=pipeline)
    assert found(text, recognition) == [
        ("PERSON", "Jane Miller"),
        ("LOCATION", "Leeds"),
        ("EMAIL_ADDRESS", "jane@example.com"),
    ]
    chosen = Recognition(Pii(entities=["ORGANIZATION", "PERSON"]), ner=pipeline / "en_names-1.0")
    assert found(text, chosen) == [("PERSON", "Jane Miller"), ("ORGANIZATION", "Acme")]
    names = Pseudonyms()
    assert names.mask(text, recognition.find(text)).startswith("<PERSON_1> of Acme in <LOCATION_1>")
    assert recognition.find(text) == recognition.find_unfiltered(text)


def test_a_pipeline_may_be_an_installed_package(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "en_names").symlink_to(pipeline)
    (pipeline / "__init__.py").write_text("raise AssertionError('the package must not be run')")
    monkeypatch.syspath_prepend(tmp_path)
    assert ("PERSON", "Jane Miller") in found("Jane Miller", Recognition(Pii(), ner=package_folder("en_names")))
    for name in ("en_missing", "os.path", "../en_names"):
        with pytest.raises(StageError, match="not installed"):
            package_folder(name)


def test_long_texts_are_read_to_their_end(pipeline: Path) -> None:
    text = "filler words " * 8000 + "Jane Miller"
    assert found(text, Recognition(Pii(entities=["PERSON"]), ner=pipeline)) == [("PERSON", "Jane Miller")]


class Listed(Store):
    """A place with these keys. S3 takes any; the server of the tests makes paths of them."""

    def __init__(self, *keys: str) -> None:
        super().__init__(None, "s3://models/names")
        self._keys = keys

    def list(self, path: str = "") -> Iterator[StoredObject]:
        """Each with a byte."""
        return (StoredObject(self.uri(key), key, 1, "e") for key in self._keys)


def test_a_pipeline_is_copied_to_its_own_folder_only() -> None:
    """Another file would be written over the sources, which lie beside it."""
    assert [each.key for each in find_names_model(Listed("config.cfg", "ner/model"))] == ["config.cfg", "ner/model"]
    with pytest.raises(StageError) as error:
        find_names_model(Listed("config.cfg", "../source-0"))
    assert error.value.reason is Reason.SPEC_INVALID
    assert_says(error.value.message, "spec.dataset.pii.ner.uri", "'../source-0', which cannot be a file's path")
