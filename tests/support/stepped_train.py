"""Stage train, whose steps are computed as STEP says, the name of a step of ``fit.steps``: a GPU with room for all
activations in float32 would choose no other. It ends where ``steered_train`` says."""

from __future__ import annotations

import os
from typing import Final

from finetune_jobs.fit import steps
from finetune_jobs.training import trainer
from tests.support import steered_train

PROGRAM: Final = "tests.support.stepped_train"
STEP: Final = "STEP"


def main() -> None:
    """Entry point."""
    step = vars(steps)[os.environ[STEP]]
    vars(trainer)["chosen_step"] = lambda *_: step
    steered_train.main(PROGRAM)


if __name__ == "__main__":
    main()
