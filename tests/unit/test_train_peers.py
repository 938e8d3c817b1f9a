"""What torch says of processes that train together: which of its errors are about another one."""

from __future__ import annotations

import pytest
from torch.distributed import DistBackendError, DistStoreError

from finetune_jobs.base.errors import StageError
from finetune_jobs.training.team import Team, peers_needed

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NCCL = "NCCL error in: torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.29.7\n"
SYSTEM = "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.3]:41234"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 900000ms for recv operation"), True),
        (DistStoreError("wait timeout after 900000ms, keys: /default_pg/0//cuda//0"), True),
        (
            DistBackendError(
                f"{NCCL.format('remote process exited or there was a network error')}ncclRemoteError: A call failed "
                "possibly due to a network error or a remote process exiting prematurely."
            ),
            True,
        ),
        (DistBackendError(f"{NCCL.format('unhandled system error')}{SYSTEM}"), True),
        (
            DistBackendError(
                f"{NCCL.format('unhandled system error')}{SYSTEM}Last error:\nError while creating shared memory "
                "segment /dev/shm/nccl-a1b2c3 (size 9637888), error: No space left on device (28)"
            ),
            False,
        ),
        (
            DistBackendError(
                f"{NCCL.format('invalid usage')}ncclInvalidUsage: This usually reflects invalid usage of NCCL "
                "library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"
            ),
            False,
        ),
        (
            DistBackendError(
                f"{NCCL.format('unhandled cuda error')}ncclUnhandledCudaError: Call to CUDA function failed.\n"
                "Last error:\nCuda failure 'CUDA driver version is insufficient for CUDA runtime version'"
            ),
            False,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_fault_of_this_pod_is_no_lost_process(error: RuntimeError, lost: bool) -> None:
    """A restart because of a lost process counts as no failure: one that NCCL's own faults cause would never end."""
    with pytest.raises(StageError if lost else type(error)) as told, peers_needed(Team(rank=0, size=2)):
        raise error
    assert told.value is error or lost
