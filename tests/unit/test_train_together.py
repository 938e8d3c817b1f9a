"""Several processes that train together: real ones, over gloo, through the stage's own entry point."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given as each
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from finetune_api.finetunejob import Output
from finetune_api.layout import MANIFEST, run_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageInput, StageResult, TrainParams, Upstream
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Progress
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.runtime.runner import earlier_result, execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.train import _is_done, train
from finetune_jobs.training import team as team_module
from finetune_jobs.training.callbacks import Checkpointing
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.context import TrainingContext
from finetune_jobs.training.launcher import Ended, supervise, verdict
from finetune_jobs.training.team import Team
from hack.cluster.layout import free_port
from tests.support.closed_port import closed_port
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import (
    RUN,
    Started,
    context,
    pipeline_params,
    run_process,
    stage_input,
    start_process,
    wait_for,
)
from tests.support.steered_train import HELD_AT, PROGRAM, STOPPED_AT
from tests.support.tiny_model import build_tiny_llama
from tests.support.together import (  # noqa: F401 - one_thread is a fixture
    HELD,
    assert_close_to,
    comparable,
    losses,
    newest_step,
    one_thread,
    train_input,
    train_log,
    two_processes,
    uneven_dataset,
    weights,
)
from tests.support.training import row, rows, run_training, settings, write_dataset
from tests.unit.test_train_recovery import AtStep

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("together") / "base")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is its embedding, as small models mostly have it."""
    path = build_tiny_llama(tmp_path_factory.mktemp("tied") / "base")
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(config))
    kept = load_file(path / "model.safetensors")
    del kept["lm_head.weight"]
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_two_processes_train_as_one_does(base: Path, store: Store, s3: SeaweedFS, tmp_path: Path) -> None:
    """The same steps over the same examples, with as many passes as it takes."""
    dataset, training = uneven_dataset(tmp_path / "dataset"), comparable(Method.LORA)
    alone = run_training(base, dataset, tmp_path, training, store.below("alone"))

    given = train_input(base, dataset, store.below("together"), s3, training)
    together = run_process(given, tmp_path, ADMIN, *two_processes())

    assert together.code == ExitCode.OK, together.log
    scalars = together.result.scalars
    assert (scalars["steps"], scalars["batchSize"], scalars["gradientAccumulation"]) == (str(alone.steps), "2", "1")
    log = train_log(store.below("together"), together.result)
    reference = (tmp_path / "adapter/train_log.jsonl").read_text()
    # The examples stand in other passes, so that sums in bfloat16 round differently.
    assert losses(log) == pytest.approx(losses(reference), rel=2e-3)
    assert losses(log, "eval_loss") == pytest.approx(losses(reference, "eval_loss"), rel=2e-3)
    assert_close_to(tmp_path / "adapter", weights(store.below("together"), together.result))


def start_node(
    given: StageInput, folder: Path, node: int, port: int, *, fresh: bool = False, held_at: int = 0
) -> Started:
    """One of two pods that train together; ``held_at``: the step after which it waits until it is killed."""
    folder.mkdir(exist_ok=True)
    place = ("--nodes", "2", "--node", str(node), "--coordinator", "127.0.0.1", "--coordinator-port", str(port))
    variables, program = {HELD_AT: str(held_at)} if held_at else {}, PROGRAM if held_at else ""
    return start_process(given, folder, ADMIN, *place, variables=variables, fresh=fresh, program=program)


def kill_pod(launcher: Started) -> None:
    """What the kernel does to a container: every process at once, without a word."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in (launcher.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    launcher.communicate()


@pytest.mark.parametrize(("method", "kind"), [(Method.LORA, "base"), (Method.FULL, "tied")])
def test_when_a_pod_is_killed_all_begin_again_and_end_as_if_it_had_not_been(
    method: Method, kind: str, store: Store, s3: SeaweedFS, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An adapter with dropout, so that the random states of both processes have to come back too, and a model of which
    each holds a half: bit for bit, from the middle of the second epoch. The pod that is killed goes no further than its
    next step."""
    base = request.getfixturevalue(kind)
    dataset = write_dataset(tmp_path / "dataset", train=rows(12))
    training = settings(method, epochs=2, batch_size=1, gradient_accumulation=2, checkpoint_steps=8, dropout="0.1")
    undisturbed = run_process(
        train_input(base, dataset, store.below("whole"), s3, training), tmp_path, ADMIN, *two_processes()
    )
    place = store.below("killed")
    given = train_input(base, dataset, place, s3, training)
    folders = [tmp_path / "pod-0", tmp_path / "pod-1"]
    port = free_port()
    pods = [start_node(given, folders[0], 0, port), start_node(given, folders[1], 1, port, held_at=9)]
    checkpoints = place.below(f"{run_folder(RUN)}/checkpoints")
    while not any(entry.key.endswith(MANIFEST) for entry in checkpoints.list()):
        assert pods[0].poll() is None, wait_for(pods[0], folders[0]).log
        time.sleep(0.2)
    kill_pod(pods[1])
    left = wait_for(pods[0], folders[0])

    assert (left.code, left.result.outcome, left.result.reason) == (
        ExitCode.RESTART_GROUP,
        Outcome.FAILED,
        Reason.PEER_LOST,
    )
    assert_says(left.result.message, "Another process", "lost;", "last checkpoint")

    pods = [start_node(given, folder, node, port) for node, folder in enumerate(folders)]
    ended = wait_for(pods[0], folders[0])
    pods[1].communicate()

    assert (ended.code, pods[1].returncode) == (ExitCode.OK, ExitCode.OK), ended.log
    assert not (folders[1] / "result.json").exists()
    expected = weights(store.below("whole"), undisturbed.result)
    for name, tensor in weights(place, ended.result).items():
        assert torch.equal(tensor, expected[name]), name


def test_helpers_of_a_training_that_is_done_end_with_it(
    base: Path, store: Store, s3: SeaweedFS, tmp_path: Path
) -> None:
    """The first process finds the result of this input and never listens: the other one looks for it too, in its pod
    and in a pod of its own, instead of waiting until it is killed. The first pod's Pythons start, its process's too."""
    training = settings(Method.LORA, max_steps=2, batch_size=2)
    given = train_input(base, write_dataset(tmp_path / "dataset"), store, s3, training)
    made = run_process(given, tmp_path, ADMIN, *two_processes())
    assert made.code == ExitCode.OK, made.log

    again = run_process(given, tmp_path, ADMIN, *two_processes())

    assert (again.code, again.result.reused) == (ExitCode.OK, True), again.log
    assert again.result.output_digest == made.result.output_digest
    assert not any("is killed" in line["message"] for line in again.log)
    alone = start_node(given, tmp_path / "pod-1", 1, free_port())
    alone.communicate(timeout=600)  # an hour, if it waited for the first one
    assert alone.returncode == ExitCode.OK
    first = wait_for(start_node(given, tmp_path / "pod-0", 0, free_port(), fresh=True), tmp_path / "pod-0")
    assert (first.code, first.result.reused) == (ExitCode.OK, True), first.log
    assert first.result.output_digest == made.result.output_digest


def test_a_helper_goes_on_waiting_where_the_store_does_not_answer(
    store: Store, s3: SeaweedFS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A retry of its pod would be counted, and its first process may be about to listen."""
    output, upstream = Output(uri=store.uri(), name="together"), Upstream(model="1" * 64, dataset="2" * 64)
    params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=Training())})
    with closed_port() as port:
        gone = s3.storage.model_copy(update={"endpoint": f"http://127.0.0.1:{port}"})
        unreachable = context(stage_input(Stage.TRAIN, gone, output, params, upstream), tmp_path)
        with pytest.raises(StageError) as error:
            earlier_result(unreachable)
        assert _is_done(unreachable) is False
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(caplog.text, "whether there is a result already is unknown")


def assert_as_alone(found: dict[str, torch.Tensor], folder: Path, base: Path) -> None:
    """The training moved all weights of ``base`` as in ``folder``, up to a twentieth and bfloat16's rounding: sums in
    another order turn a few of Adam's steps."""
    (file,) = folder.glob("*.safetensors")
    expected, start = load_file(file), load_file(base / "model.safetensors")
    assert found.keys() == expected.keys() == start.keys()
    for name, tensor in expected.items():
        apart, moved = (found[name] - tensor).float().norm(), (tensor - start[name]).norm()
        assert apart <= moved / 20 + tensor.float().norm() / 512, name


def test_a_whole_model_is_divided_among_two_processes_and_trained_as_by_one(
    base: Path, store: Store, s3: SeaweedFS, tmp_path: Path
) -> None:
    """Each holds a half (FSDP). The validation's answers are wrong, so that an early checkpoint is the best one and is
    loaded at the end."""
    place = store.below("together")
    wrong = [row("refund my parcel 99", "other fox"), row("what is the capital 99", "refund")]
    dataset = write_dataset(tmp_path / "dataset", train=rows(13), validation=wrong)
    training = settings(Method.FULL, epochs=6, batch_size=2, gradient_accumulation=4, checkpoint_steps=6)
    alone = run_training(base, dataset, tmp_path, training, store.below("alone"))

    together = run_process(train_input(base, dataset, place, s3, training), tmp_path, ADMIN, *two_processes())

    assert together.code == ExitCode.OK, together.log
    told = [held for entry in together.log if (held := HELD.fullmatch(entry["message"]))]
    half = alone.trainable_parameters / 2
    assert {held[1]: int(held[2]) for held in told} == {"0": half, "1": half}
    assert "the weights of step 6 are kept" in together.result.message
    log = train_log(place, together.result)
    reference = (tmp_path / "adapter/train_log.jsonl").read_text()
    for figure, tolerance in (("loss", 0.03), ("eval_loss", 0.03), ("grad_norm", 0.1)):
        assert losses(log, figure) == pytest.approx(losses(reference, figure), rel=tolerance), figure
    assert_as_alone(weights(place, together.result), tmp_path / "adapter", base)


def test_any_number_of_processes_goes_on_from_what_another_number_left(
    tied: Path, store: Store, s3: SeaweedFS, tmp_path: Path
) -> None:
    """One alone begins, two go on, one ends it; the first two are told to stop amid an epoch. The one is the stage in
    this process: its own entry point is run by other tests."""
    dataset = write_dataset(tmp_path / "dataset", train=rows(20))
    training = settings(
        Method.FULL, epochs=3, batch_size=2, gradient_accumulation=4, checkpoint_steps=4, learning_rate="5e-4"
    )
    run_training(tied, dataset, tmp_path, training, store.below("alone"))
    place = store.below("changing")
    given = train_input(tied, dataset, place, s3, training)

    first = context(given, tmp_path)
    with pytest.raises(StoppedError):
        execute(replace(first, progress=AtStep(4, first.stopping.set)), train)
    assert newest_step(place) == 4

    told = {STOPPED_AT: "7"}
    stopped = run_process(given, tmp_path, ADMIN, *two_processes(), program=PROGRAM, variables=told)
    assert stopped.result.reason is Reason.PREEMPTED, stopped.log
    assert newest_step(place) == 7

    ended = execute(context(given, tmp_path), train)

    assert_as_alone(weights(place, ended), tmp_path / "adapter", tied)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_never_connect_count_as_a_failure(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody was lost: a restart that counts as none would be repeated for ever, and hold the GPUs."""
    monkeypatch.setattr(team_module, "GATHERING_SECONDS", 2.0)
    port = free_port()
    with pytest.raises(StageError) as told:
        Team(rank=rank, size=2).join({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    error = told.value
    assert (error.reason, error.retriable, error.peer_initiated) == (Reason.PEERS_UNREACHABLE, True, False)
    assert_says(
        error.message, "2 processes", "not connected", f"process {rank + 1}", f"127.0.0.1:{port}", "network policy"
    )


def test_a_port_that_another_program_has_is_named() -> None:
    """It is not the network's fault, which waiting might mend."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(StageError) as told:
            Team(rank=0, size=2).join({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    assert told.value.reason is Reason.PEERS_UNREACHABLE
    assert_says(told.value.message, "2 processes", "another program", f"port {port}", "--coordinator-port")


def test_a_first_process_that_goes_while_others_gather_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was evicted, which does not count, and comes back."""
    monkeypatch.setattr(team_module, "GATHERING_SECONDS", 60.0)
    port = free_port()
    first = torch.distributed.TCPStore("127.0.0.1", port, 3, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor() as pool:
        joined = pool.submit(Team(rank=1, size=3).join, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
        while first.num_keys() == 0:
            time.sleep(0.05)
        del first
        error = joined.exception(timeout=120)
    assert isinstance(error, StageError)
    assert (error.reason, error.peer_initiated) == (Reason.PEER_LOST, True)


class _OneOfTwo(Team):
    """The first of two processes; the other one has been told to stop."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return (True, *flags[1:])


def test_all_stop_with_a_checkpoint_when_one_is_told_to(store: Store, tmp_path: Path) -> None:
    """The one that was not told ends because of its peer: that must not count as a failure of the Job."""
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3/trainer_state.json").write_text("{}")
    checkpoints = Checkpoints(store)
    team = _OneOfTwo(rank=0, size=2)
    context = TrainingContext(checkpoints, Progress("train"), threading.Event(), team=team)
    ending = Checkpointing(context, tmp_path, save=lambda: None)
    state, control = SimpleNamespace(global_step=3, max_steps=9), SimpleNamespace(should_save=False)

    ending.on_step_end(None, state, control)
    assert control.should_save
    with pytest.raises(StageError, match=r"Another pod .* told to stop; step 3 of 9 is saved") as told:
        ending.on_save(None, state, control)

    assert (told.value.reason, told.value.peer_initiated) == (Reason.PEER_LOST, True)
    assert checkpoints.newest_step == 3


@each(size=st.integers(1, 64), passes=st.integers(1, 64), processes=st.integers(1, 64))
def test_a_batch_is_divided_without_rest_or_not_at_all(size: int, passes: int, processes: int) -> None:
    part = Batch(size, passes).divided(processes)
    assert (part is None) == ((size * passes) % processes > 0)
    if part:
        assert part.size * part.passes * processes == size * passes
        assert part.size <= size


@pytest.mark.parametrize(
    ("batch", "processes", "part"),
    [((8, 2), 1, (8, 2)), ((8, 2), 2, (8, 1)), ((8, 2), 4, (4, 1)), ((4, 6), 2, (4, 3)), ((5, 4), 2, (5, 2))],
)
def test_passes_give_way_before_their_size(batch: tuple[int, int], processes: int, part: tuple[int, int]) -> None:
    assert Batch(*batch).divided(processes) == Batch(*part)


def failed(reason: Reason) -> StageResult:
    return StageResult(stage=Stage.TRAIN, outcome=Outcome.FAILED, reason=reason, message=f"said {reason}")


DONE = StageResult(stage=Stage.TRAIN, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED)
LOST = failed(Reason.PEER_LOST)
CRASH = "Process 1 … signal 9 … log"


@pytest.mark.parametrize(
    ("ended", "code", "says"),
    [
        pytest.param([Ended(1, 0, DONE), Ended(0, 0, DONE)], ExitCode.OK, "", id="all done"),
        pytest.param([Ended(0, 0, DONE), Ended(1, -9, None)], ExitCode.OK, "", id="a helper that ends late"),
        pytest.param(
            [Ended(1, 76, LOST), Ended(0, 65, failed(Reason.LOSS_NOT_FINITE))],
            ExitCode.FATAL,
            "said LossNotFinite",
            id="the cause, not who noticed",
        ),
        pytest.param(
            [Ended(1, 76, LOST), Ended(0, 76, LOST)], ExitCode.RESTART_GROUP, "said PeerLost", id="another pod's"
        ),
        pytest.param([Ended(1, -9, None), Ended(0, 76, LOST)], ExitCode.RETRIABLE, CRASH, id="killed"),
        pytest.param([Ended(1, 1, None), Ended(0, 76, LOST)], ExitCode.RETRIABLE, "exit code 1", id="crashed"),
        pytest.param(
            [Ended(2, -6, None), Ended(1, 76, failed(Reason.CUDA_OUT_OF_MEMORY)), Ended(0, -9, None)],
            ExitCode.RESTART_GROUP,
            "said CudaOutOfMemory",
            id="aborted or killed, as they waited on their GPUs for one that restarts all",
        ),
        pytest.param(
            [Ended(1, 76, failed(Reason.CUDA_OUT_OF_MEMORY)), Ended(0, 65, failed(Reason.LOSS_NOT_FINITE))],
            ExitCode.FATAL,
            "said LossNotFinite",
            id="a failure, not a restart that another wants",
        ),
    ],
)
def test_the_pod_ends_as_the_process_that_is_the_cause(ended: list[Ended], code: ExitCode, says: str) -> None:
    result, found = verdict(ended)
    assert found == code
    assert result is not None
    assert_says(result.message, *says.split(" … "))


def test_a_pod_of_helpers_has_no_result_of_its_own() -> None:
    assert verdict([Ended(3, 0, DONE), Ended(2, 0, DONE)]) == (None, ExitCode.OK)


def test_who_does_not_end_when_another_has_failed_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    hung = subprocess.Popen(["sleep", "60"])
    broken = subprocess.Popen(["false"])
    assert supervise({0: hung, 1: broken}, last_words=0.5) == [(1, 1), (0, -signal.SIGKILL)]
    assert caplog.messages == ["process 0 does not exit and is killed"]


def test_what_one_of_several_gpus_does_not_hold_is_left_out_by_the_next_attempt(store: Store) -> None:
    """The process that finds it out cannot tell the others, and is not always the one that owns the state."""
    Checkpoints(store).remember_too_large(Batch(4, 2))
    assert Checkpoints(store).batch(Batch(8, 1)) == Batch(2, 4)
    assert Checkpoints(store).batch(Batch(2, 4)) == Batch(2, 4)
