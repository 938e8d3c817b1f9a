"""The operator's configuration, as it is read at start, and what is said where it cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from finetune_api import __version__
from finetune_operator import __main__ as program
from finetune_operator.settings_file import SettingsError, load_settings

pytestmark = pytest.mark.unit

IMAGES = "images: {data: d, prepare: p, jobs: j, quantize: q, proxy: x}\n"
OLDER = (
    f"this operator ({__version__}) does not know {{}}. Its image is older than its chart: set images.tag, or "
    "images.operator.digest, of the chart's values to the image that was built with the chart."
)
NEWER = (
    f"This operator ({__version__}) needs images.proxy. Its image is newer than its chart: upgrade the chart, or set "
    "images.tag, or images.operator.digest, of its values to the image that was built with it."
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{IMAGES}profiles: {{}}\nsurprise: 1\n", OLDER.format("surprise")),
        (f"{IMAGES}profiles: {{a: {{later: 1}}}}\nsurprise: 1\n", OLDER.format("profiles.a.later, surprise")),
        (
            f"{IMAGES}profiles: {{a: {{retries: many}}}}\n",
            "profiles.a.retries: Input should be a valid integer, unable to parse string as an integer.",
        ),
        (f"{IMAGES.replace(', proxy: x', '')}profiles: {{}}\n", f"images.proxy: Field required. {NEWER}"),
        (
            f"{IMAGES}profiles: {{}}\nruntimes: {{a: {{engine: tgi, image: i, drainSeconds: -1}}}}\n",
            "runtimes.a.drainSeconds: Input should be greater than or equal to 0.",
        ),
        (
            f"{IMAGES}profiles: {{}}\nruntimes: {{a: {{engine: tgi, image: i, drainSeconds: 61, "
            "terminationGraceSeconds: 60}}\n",
            "runtimes.a: Value error, drainSeconds 61 is longer than a stopping pod has: it must be at most "
            "terminationGraceSeconds 60.",
        ),
        (
            f"{IMAGES}profiles: {{a: {{gpu: {{name: X, memoryGib: 1, peakTflops: 1, usdPerHour: -1}}}}}}\n",
            "profiles.a.gpu.usdPerHour: Input should be greater than or equal to 0.",
        ),
        (f"{IMAGES}surprise: 1\n", f"profiles: Field required; {OLDER.format('surprise')}"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    """Place, and what to do: a key that is not known comes from a newer chart, whose schema has let it through."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    assert str(raised.value) == f"{path}: {says}"


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(SettingsError, match=r"config\.yaml: No such file or directory\."):
        load_settings(path)
    path.write_text("a: [")
    with pytest.raises(SettingsError, match=r"config\.yaml is not YAML: "):
        load_settings(path)


def test_the_operator_says_so_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line of its log, without a traceback."""
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"surprise": 1}))
    monkeypatch.setattr(sys, "argv", ["finetune-operator", "--config", str(path)])
    monkeypatch.setattr(program, "configure_logging", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    [record] = caplog.records
    assert "Its image is older than its chart" in record.message
    assert record.exc_info is None
