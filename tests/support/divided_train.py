"""Stage train, whose processes divide an adapter's base among them as on GPUs that are each too small for it: a CPU's
memory never asks for that. Of each layer a part is computed again in the backward pass, as it would be there, or, where
the environment has PLAIN, the whole layer. It ends where ``steered_train`` says."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from finetune_jobs.fit.steps import ON_CPU
from finetune_jobs.training import trainer
from tests.support import steered_train

PROGRAM: Final = "tests.support.divided_train"
PLAIN: Final = "PLAIN"


def main() -> None:
    """Entry point."""
    vars(trainer)["chosen_step"] = lambda *_: replace(
        ON_CPU, divided=True, checkpointing=True, selective=PLAIN not in os.environ
    )
    steered_train.main(PROGRAM)


if __name__ == "__main__":
    main()
