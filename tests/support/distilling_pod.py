"""A pod that distils: ``python -m tests.support.distilling_pod ENDPOINT PLACE URL COUNT``, which asks ``COUNT`` prompts
of the server at ``URL`` until it is done, or stops on SIGTERM and prints why."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Final
from unittest import mock

from finetune_jobs.base.errors import StoppedError
from finetune_jobs.store.s3 import Store
from tests.support.distilling import config, prompts, run
from tests.support.seaweedfs import SeaweedFS

PROGRAM: Final = "tests.support.distilling_pod"


def main(endpoint: str, place: str, url: str, count: str) -> None:
    """Entry point."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    store = Store.connect(SeaweedFS(endpoint).storage, place)
    try:
        with mock.patch("finetune_jobs.chat_api.answer_collector._KEEP_SECONDS", 0.5):
            run(store, prompts(int(count)), config(url, concurrency=4), stopping=stopping)
    except StoppedError as stopped:
        print(stopped)


if __name__ == "__main__":
    main(*sys.argv[1:])
