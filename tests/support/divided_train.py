"""Stage train, whose processes divide an adapter's base among them as on GPUs that are each too small for it: a CPU's
memory never asks for that. A part of each layer is computed again in the backward pass, as it would be there."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from finetune_jobs import train
from finetune_jobs.fit.memory import ON_CPU
from finetune_jobs.training import launcher, trainer

PROGRAM: Final = "tests.support.divided_train"
_STAGE: Final = "finetune_jobs.train"


def main() -> None:
    """Entry point."""
    command = launcher._command
    vars(launcher)["_command"] = lambda *given: [PROGRAM if word == _STAGE else word for word in command(*given)]
    vars(trainer)["chosen_step"] = lambda *_: replace(ON_CPU, divided=True, checkpointing=True, selective=True)
    train.main()


if __name__ == "__main__":
    main()
