"""The tokens of a data set in training: mapped from disk, so that all processes of a machine share one copy."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_jobs.modelling.token_files import read_tokens
from tests.support import forked

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def write_tokens(folder: Path, examples: int, length: int = 4, seed: int = 0) -> Path:
    """Training tokens as prepare writes them."""
    ids = np.random.default_rng(seed).integers(0, 1 << 30, (examples, length), dtype=np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), length).cast(pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": column, "labels": column}), folder / "train.parquet", row_group_size=1024)
    return folder


def test_the_table_is_what_prepare_wrote(tmp_path: Path) -> None:
    write_tokens(tmp_path, 3000)
    written = pq.read_table(tmp_path / "train.parquet")
    assert read_tokens(tmp_path, "train").equals(written)
    assert read_tokens(tmp_path, "train").equals(written)


def test_tokens_that_were_written_again_are_read_again(tmp_path: Path) -> None:
    before = read_tokens(write_tokens(tmp_path, 3), "train")
    os.utime(next(tmp_path.glob("*.arrow")), ns=(0, 0))
    after = read_tokens(write_tokens(tmp_path, 5, seed=1), "train")
    assert (before.num_rows, after.num_rows) == (3, 5)


_READ = """
import re, sys
from pathlib import Path
from datasets import Dataset
from finetune_jobs.modelling.token_files import read_tokens
from finetune_jobs.training.division import mapped_split, with_blanks
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
read_tokens(Path(sys.argv[1]) / "small", "train")
before = own()
split = with_blanks(mapped_split(Path(sys.argv[1]), "train"), 3, 0)
rows = sum(len(split[n]["input_ids"]) for n in range(0, len(split), 1000))
print(len(split), own() - before)
"""


def test_a_process_holds_no_copy_of_its_own(tmp_path: Path) -> None:
    """160 MB of tokens in the memory that a process shares with nobody: less than a tenth of them."""
    (tmp_path / "small").mkdir()
    write_tokens(tmp_path / "small", 10)
    write_tokens(tmp_path, 20_000, 1000)
    read_tokens(tmp_path, "train")  # the first one unpacks them
    program = tmp_path / "program.py"
    program.write_text(_READ)
    ended = forked.run([str(program), str(tmp_path)], os.environ)
    assert ended.returncode == 0, ended.stderr
    rows, kib = map(int, ended.stdout.split())
    assert rows == 20_003
    assert kib < 16_000


def test_processes_that_start_together_unpack_once(tmp_path: Path) -> None:
    write_tokens(tmp_path, 20_000, 100)
    program = tmp_path / "program.py"
    read = "import sys; from pathlib import Path; from finetune_jobs.modelling.token_files import read_tokens"
    program.write_text(f"{read}\nprint(read_tokens(Path(sys.argv[1]), 'train').num_rows)")
    running = [forked.start([str(program), str(tmp_path)], os.environ) for _ in range(4)]
    assert [each.communicate()[0].strip() for each in running] == [b"20000"] * 4
    assert len(list(tmp_path.glob("*.arrow*"))) == 1
