"""Stage train, whose processes divide an adapter's base among them as on GPUs that are each too small for it: a CPU's
memory never asks for that. Of each layer a part is computed again in the backward pass, as it would be there, or, where
the environment has PLAIN, the whole layer."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from finetune_jobs import train
from finetune_jobs.fit.memory import ON_CPU
from finetune_jobs.training import launcher, trainer

PROGRAM: Final = "tests.support.divided_train"
PLAIN: Final = "PLAIN"
_STAGE: Final = "finetune_jobs.train"


def main() -> None:
    """Entry point."""
    command = launcher._command
    vars(launcher)["_command"] = lambda *given: [PROGRAM if word == _STAGE else word for word in command(*given)]
    vars(trainer)["chosen_step"] = lambda *_: replace(
        ON_CPU, divided=True, checkpointing=True, selective=PLAIN not in os.environ
    )
    train.main()


if __name__ == "__main__":
    main()
