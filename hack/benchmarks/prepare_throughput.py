"""Speed and memory of preparing rows: cleaning, personal data, exact and near duplicates, and the split.

Our code prepares 100,000 generated support conversations in a separate process; its CPU time includes the start of the
process. The baseline passes each row through Presidio's engine with all its recognisers and adds it to datasketch's LSH
index. It is so slow that it gets only the first 2,000 rows, without its start, and its time per row is extrapolated
(with more rows its index would get slower, not faster). The peak memory is that of our code with 1,000,000 rows.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.dataset import Duplicates
from hack.benchmarks.pii import presidio
from hack.benchmarks.result import Result
from hack.cluster.console import ClusterError, say

ROWS = 100_000
MANY_ROWS = 1_000_000
SAMPLE = 2_000
SEED = 7


@dataclass(frozen=True)
class Usage:
    """Resource usage of a process."""

    cpu_seconds: float
    peak_mib: float
    output: dict[str, Any]
    """Its output."""


def run() -> Result:
    """Measure both; the value is our rows per CPU second, the baseline that of the plain implementation."""
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as folder:
        small, large = Path(folder) / "rows.jsonl", Path(folder) / "many-rows.jsonl"
        size = write_conversations(small, ROWS)
        ours = in_a_process("ours", small)
        say(f"  ours: {ROWS / ours.cpu_seconds:.0f} rows per CPU second")
        plain = in_a_process("plain", small)
        plain_rate = SAMPLE / plain.output["loopCpuSeconds"]
        say(f"  baseline: {plain_rate:.0f} rows per CPU second")
        write_conversations(large, MANY_ROWS)
        many = in_a_process("ours", large)
    return Result(
        name="prepare_throughput",
        value=round(ROWS / ours.cpu_seconds, 1),
        unit="rows/CPU-second",
        baseline=round(plain_rate, 1),
        goal="ratio ≥ 10; details.manyRows.peakMiB ≤ 2,048",
        details={
            "bytes": size,
            "ours": ours.output | {"cpuSeconds": round(ours.cpu_seconds, 1), "peakMiB": round(ours.peak_mib)},
            "plain": plain.output | {"peakMiB": round(plain.peak_mib), "extrapolatedFromRows": SAMPLE},
            "manyRows": many.output | {"cpuSeconds": round(many.cpu_seconds, 1), "peakMiB": round(many.peak_mib)},
        },
    )


def in_a_process(way: str, rows: Path) -> Usage:
    """Run one implementation on a file. Raises ClusterError if it fails."""
    output = rows.with_suffix(f".{way}.json")
    argv = [sys.executable, "-m", "hack.benchmarks.prepare_throughput", way, str(rows), str(output)]
    process = os.posix_spawn(sys.executable, argv, {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"})
    _, status, used = os.wait4(process, 0)
    if status:
        raise ClusterError(f"{way} failed with exit code {os.waitstatus_to_exitcode(status)}")
    return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, json.loads(output.read_text()))


def prepare_rows(rows: Path) -> dict[str, int]:
    """Our implementation: the stage's passes without the tokenizer, which the baseline does not use either."""
    from finetune_api.dataset import DataFormat, Dataset, Source, Task, TaskType
    from finetune_api.stages import PrepareParams
    from finetune_jobs.examples.validation import Example
    from finetune_jobs.modelling import chat
    from finetune_jobs.preparation.collect import Collector, Copy
    from finetune_jobs.preparation.intake import Intake
    from finetune_jobs.preparation.tokens import EncodedExample, Encoder
    from finetune_jobs.reading.sources import SourceFile
    from finetune_jobs.splitting.division import divide

    class Untokenised(Encoder):
        def encode(self, example: Example, place: str) -> list[EncodedExample]:
            return [EncodedExample(example, [chat.Encoded([], [])])]

    source = Source(uri="s3://bench/rows.jsonl")
    params = PrepareParams(dataset=Dataset(sources=[source]), task=Task(type=TaskType.TEXT))
    [origin] = params.dataset.all_sources
    file = SourceFile(origin, str(source.uri), rows.stat().st_size, "", DataFormat.JSONL, False, lambda path: None)
    intake = Intake(params.dataset, params.task)
    with Collector(intake, Untokenised(None, 0, params), rows.with_suffix(".spool")) as collector:
        collector.read([Copy(file, rows)], _silent)
    made = collector.made
    near = made.near(params.dataset.duplicates.sought_percent)
    division = divide(made.ledger, near, made.texts, params.dataset)
    return {
        "examples": len(division.parts),
        "findings": made.intake.personal.total(),
        "nearDuplicates": len(near.clusters),
    }


def _silent(_done: int, _total: int) -> None:
    """Discard the progress."""


def prepare_rows_plainly(rows: Path) -> dict[str, float]:
    """The baseline: every recogniser on every text, and a MinHash index in Python."""
    from datasketch import MinHash, MinHashLSH

    find, index = presidio(), MinHashLSH(threshold=Duplicates().near_percent / 100, num_perm=128)
    seen: set[str] = set()
    findings = near = 0
    with rows.open("rb") as source:
        find("a.first@example.org")
        begin = time.process_time()
        for line, _ in zip(source, range(SAMPLE), strict=False):
            texts = []
            for message in json.loads(line)["messages"]:
                text = " ".join(unicodedata.normalize("NFC", message["content"]).split())
                found = find(text)
                findings += len(found)
                for finding in sorted(found, key=lambda f: -f.start):
                    text = f"{text[: finding.start]}<{finding.entity}>{text[finding.end :]}"
                texts.append(text)
            prompt = " ".join(texts[:-1]).casefold()
            if prompt in seen:
                continue
            seen.add(prompt)
            words = prompt.split()
            minhash = MinHash(num_perm=128)
            minhash.update_batch(
                [" ".join(triple).encode() for triple in zip(words, words[1:], words[2:], strict=False)]
            )
            near += bool(index.query(minhash))
            index.insert(prompt, minhash)
        seconds = time.process_time() - begin
    return {"loopCpuSeconds": round(seconds, 2), "examples": len(seen), "findings": findings, "nearDuplicates": near}


FIRST = (
    "Ada",
    "Ben",
    "Chloe",
    "David",
    "Elif",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kaya",
    "Lena",
    "Mo",
    "Nora",
)
LAST = (
    "Abbot",
    "Brandt",
    "Costa",
    "Dahl",
    "Evans",
    "Fischer",
    "Garcia",
    "Hansen",
    "Ivanov",
    "Jensen",
    "Kowalski",
    "Lee",
)
PRODUCTS = ("kettle", "desk lamp", "rain jacket", "office chair", "headset", "backpack", "router", "blender", "tent")
COLOURS = ("black", "white", "green", "blue", "red", "grey", "yellow", "brown")
PLACES = ("the hall", "my office", "the garage", "my parents' flat", "the workshop", "our holiday home", "the kitchen")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
GREETINGS = (
    "Hello,",
    "Hi there,",
    "Good morning,",
    "Dear team,",
    "Hey,",
    "Good evening everyone,",
    "To whom it may concern:",
)
STORIES = (
    "I bought a {colour} {product} for {place} on {day} and paid {price} for it with order {order}.",
    "On {day} my order {order} should have arrived, a {product} in {colour} that cost {price}.",
    "My partner ordered the {colour} {product} under number {order}, and the invoice over {price} came to me on {day}.",
    "The {product} from order {order} stands in {place} since {day}, and so far I have paid {price}.",
    "Since {day} I have been waiting for {price} back after returning a {colour} {product} from order {order}.",
    "We wanted two of the {colour} {product} for {place}, yet order {order} shows only one at {price}.",
)
PROBLEMS = (
    "It stopped working after {number} days and makes a noise that the neighbours can hear.",
    "The parcel was open, the manual was missing, and {number} screws were lying loose in the box.",
    "The tracking page has said the same for {number} hours and nobody answers the telephone.",
    "The colour looks like {colour2} in daylight, which is not at all what the picture promised.",
    "The bill names {number} pieces although the box held one, so please correct the amount.",
    "I cannot log in to change the address, the page sends me back to the start {number} times in a row.",
    "The discount of {number} percent from your letter was not taken off at the end.",
    "The delivery went to {place2}, where nobody has been at home for {number} weeks.",
)
WISHES = (
    "Please tell me what happens next.",
    "Could you send a replacement before {day2}?",
    "I would rather have my money back.",
    "Is there a repair shop near {place2}?",
    "Please confirm that in writing until {day2}.",
    "Who can I talk to about it after {number2} o'clock?",
)
CONTACTS = (
    "You reach me at {email}.",
    "My number is {phone}, best after six.",
    "Write to {email} or call {phone}.",
    "Signed, {first} {last}",
    "{first}",
    "",
)
ANSWERS = (
    "Thank you, {first}. I have found order {order} and opened case {case}. The workshop looks at the {product} within "
    "{number} days, and you hear from us by {day2} at the latest.",
    "I am sorry about the trouble. For the {colour} {product} we have sent a label to {email}; put the parcel into any "
    "post office and the {price} are back on your account {number} days later.",
    "That should not have happened. A colleague calls {phone} on {day2}; until then nothing is charged for order "
    "{order}, and case {case} keeps everything that you wrote.",
    "The depot has confirmed that the {product} leaves on {day2}. If it is not in {place} {number} days later, answer "
    "to this message and quote case {case}.",
)
FOLLOW_UPS = (
    "Thanks, that was quick. Does the same hold for the second {product}, the {colour2} one in {place2}?",
    "I am not at home on {day2}. May it be another day, or a neighbour at {phone2}?",
    "Good. Please use {email2} from now on, the old address is no longer read.",
)


def write_conversations(path: Path, count: int) -> int:
    """Write generated conversations to a file, always the same; returns its size in bytes."""
    with path.open("w") as file:
        for messages in conversations(count, SEED):
            file.write(json.dumps({"messages": messages}) + "\n")
    return path.stat().st_size


def conversations(count: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """Support conversations: 4 % repeat a recent one exactly, 6 % with another greeting and a word of thanks."""
    chance = random.Random(seed)
    recent: list[list[dict[str, str]]] = []
    for _ in range(count):
        kind = chance.random()
        if recent and kind < 0.1:
            messages = [dict(message) for message in chance.choice(recent)]
            if kind < 0.06:
                messages[0]["content"] = f"{chance.choice(GREETINGS)} {messages[0]['content']} Thanks"
        else:
            messages = conversation(chance)
            recent = [*recent[-999:], messages]
        yield messages


def conversation(chance: random.Random) -> list[dict[str, str]]:
    """One conversation of two or four messages about an order, with invented people, addresses and numbers."""
    values = slots(chance)
    problems, wishes = chance.sample(PROBLEMS, chance.randint(1, 3)), chance.sample(WISHES, 2)
    question = [chance.choice(STORIES), *problems, *wishes, chance.choice(CONTACTS)]
    said = [" ".join(question), chance.choice(ANSWERS)]
    if chance.random() < 0.3:
        said += [chance.choice(FOLLOW_UPS), chance.choice(ANSWERS)]
    texts = [text.format(**values).strip() for text in said]
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def slots(chance: random.Random) -> dict[str, str]:
    """Values that distinguish a conversation; telephone numbers are from ranges reserved for fiction."""
    first, last = chance.choice(FIRST), chance.choice(LAST)
    other = chance.choice(FIRST)
    return {
        "first": first,
        "last": last,
        "email": f"{first}.{last}{chance.randrange(1000)}@example.org".lower(),
        "email2": f"{other}{chance.randrange(1000)}@mail.example.com".lower(),
        "phone": f"+1 212-555-01{chance.randrange(100):02}",
        "phone2": f"020 7946 0{chance.randrange(1000):03}",
        "order": f"{chance.randrange(10**5):05}-{chance.choice('ABCDEF')}",
        "case": f"C{chance.randrange(10**6):06}",
        "price": f"{chance.randrange(5, 900)}.{chance.randrange(100):02} €",
        "product": chance.choice(PRODUCTS),
        "colour": chance.choice(COLOURS),
        "colour2": chance.choice(COLOURS),
        "place": chance.choice(PLACES),
        "place2": chance.choice(PLACES),
        "day": chance.choice(DAYS),
        "day2": chance.choice(DAYS),
        "number": str(chance.randrange(2, 60)),
        "number2": str(chance.randrange(9, 20)),
    }


def main(way: str, rows: str, output: str) -> None:
    """Run one implementation on a file, in this process."""
    found = prepare_rows(Path(rows)) if way == "ours" else prepare_rows_plainly(Path(rows))
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
