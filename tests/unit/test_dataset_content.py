"""Compressed files: read as if they were not, and refused where they are cut, damaged or bombs."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.dataset import DataFormat
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading import content
from finetune_jobs.reading.formats import format_of
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Row
from tests.support.parquet import parquet_bytes
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

ROWS = [{"text": f"text {number} äöü", "label": "ab"[number % 2]} for number in range(500)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
PLAIN = {
    ".csv": b"text,label\n" + b"".join(f"{row['text']},{row['label']}\n".encode() for row in ROWS),
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": json.dumps(ROWS).encode(),
    ".parquet": parquet_bytes({name: [row[name] for row in ROWS] for name in ("text", "label")}),
}


def zstd(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(raw)


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def read(path: Path, raw: bytes, name: str, declared: DataFormat | None = None) -> list[dict[str, object]]:
    path.write_bytes(raw)
    uri = f"s3://data/{name}"
    rows = list(read_rows(path, uri, format_of(uri, declared), ["text", "label"]))
    assert all(isinstance(row, Row) for row in rows)
    return [row.fields for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("ending", PLAIN)
def test_every_format_in_every_compression_gives_the_same_rows(tmp_path: Path, ending: str, compression: str) -> None:
    raw = COMPRESSED[compression](PLAIN[ending])
    assert read(tmp_path / "source", raw, f"rows{ending}{compression}") == ROWS
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


@pytest.mark.parametrize("compress", COMPRESSED.values())
def test_a_name_without_an_ending_leaves_it_to_the_first_bytes(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    assert read(tmp_path / "source", compress(LINES), "rows", DataFormat.JSONL) == ROWS


@pytest.mark.parametrize("compress", COMPRESSED.values())
def test_several_streams_in_a_file_are_one(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    raw = compress(LINES[:1000]) + compress(b"") + compress(LINES[1000:])
    assert read(tmp_path / "source", raw, "rows", DataFormat.JSONL) == ROWS


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]


GZ, ZST = gzip.compress(LINES), zstd(LINES)


@given(st.floats(0, 1, exclude_max=True), st.booleans(), st.sampled_from([".gz", ".zst"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_row_is_lost_silently(tmp_path: Path, share: float, cut: bool, ending: str) -> None:
    """Wherever a file is cut or a byte flipped: an error, or all rows as they were."""
    whole = {".gz": GZ, ".zst": ZST}[ending]
    place = 1 + int(share * (len(whole) - 1))
    raw = whole[:place] if cut else flipped(whole, place)
    try:
        assert read(tmp_path / "source", raw, f"rows.jsonl{ending}") == ROWS
    except StageError as error:
        assert error.reason is Reason.DATASET_INVALID  # noqa: PT017 - both ends are right


@pytest.mark.slow
def test_a_zip_bomb_is_refused_and_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "source"
    compressor = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1 << 24)
    path.write_bytes(b"".join(compressor.compress(zeros) for _ in range(65)) + compressor.flush())
    tracemalloc.start()
    with pytest.raises(StageError) as error:
        list(read_rows(path, "s3://data/rows.jsonl.zst", DataFormat.JSONL))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    sizes = (f"{path.stat().st_size / 1024:.1f} KiB", "1.0 GiB")
    remedies = ("split", "smaller files", "compress it less")
    assert_says(error.value.message, "s3://data/rows.jsonl.zst:", *sizes, "decompression bomb", *remedies)


@pytest.mark.parametrize(
    ("stored", "limit"),
    [(0, 1 << 30), (1 << 20, 1 << 30), (1 << 30, 64 << 30), (2 << 20, 2000 << 20), (1 << 40, 64 << 30)],
)
def test_what_a_file_may_become(stored: int, limit: int) -> None:
    assert content.size_limit(stored) == limit


def test_progress_of_a_compressed_file_counts_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(gzip.compress(LINES * 20))
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))

    assert len(list(read_rows(path, "s3://data/rows.jsonl.gz", DataFormat.JSONL, report=report))) == 10_000
    assert told == sorted(told)
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
