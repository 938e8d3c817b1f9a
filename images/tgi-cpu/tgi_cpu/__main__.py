"""``python -m tgi_cpu``: check the arguments, load the model, and only then open the port.

On SIGTERM it closes the port immediately, gives requests in flight up to GRACEFUL_TERMINATION_TIMEOUT seconds, and
exits with status 0.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from tgi_cpu.args import Args, LauncherError, Limits, bind_address, parse_args
from tgi_cpu.dialect import CheckpointFiles, read_checkpoint

TIME = "%Y-%m-%dT%H:%M:%S%z"
LIBRARIES_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


class JsonLines(logging.Formatter):
    """One JSON object per line, with the field names of TGI's JSON_OUTPUT."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line; a traceback is part of the message."""
        message = super().format(record)
        place = {"timestamp": self.formatTime(record, self.datefmt), "level": record.levelname, "target": record.name}
        return json.dumps({**place, "fields": {"message": message}}, ensure_ascii=False)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0 after a clean stop, 1 if TGI's launcher would fail."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt=TIME)
    logging.captureWarnings(True)
    # Used until the server installs its own handler, and again after it has drained. Process 1 of a container has no
    # default action for SIGTERM: without this, a pod that is still loading would wait for its whole grace period.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        args = parse_args(argv, os.environ)
        if args.json_output:
            logging.getLogger().handlers[0].setFormatter(JsonLines(datefmt=TIME))
        files = read_checkpoint(args)
        limits = Limits.of(args, files.max_position_embeddings)
    except LauncherError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    serve(args, files, limits)
    return 0


def serve(args: Args, files: CheckpointFiles, limits: Limits) -> None:
    """Load the checkpoint and serve until told to stop."""
    os.environ.update(LIBRARIES_ENV)
    # Imported only now, because they load torch: a wrong argument should fail fast.
    import uvicorn

    from tgi_cpu.chat_template import ChatTemplate
    from tgi_cpu.checkpoint import load_checkpoint
    from tgi_cpu.engine import Engine
    from tgi_cpu.inference import Inference
    from tgi_cpu.metrics import Metrics
    from tgi_cpu.server import build_app
    from tgi_cpu.validation import Validator

    draw_no_bars()
    checkpoint = load_checkpoint(args, files)
    metrics = Metrics(max_input_tokens=limits.max_input_tokens, max_total_tokens=limits.max_total_tokens)
    engine = Engine(
        checkpoint, metrics, max_batch_size=args.max_batch_size, max_prefill_tokens=args.max_batch_prefill_tokens
    )
    validator = Validator(checkpoint.vocabulary.encoder, limits, args, metrics)
    inference = Inference(engine, validator, metrics, max_concurrent_requests=args.max_concurrent_requests)
    template = ChatTemplate(files.chat_template, checkpoint.vocabulary.tokenizer)
    logging.getLogger(__name__).info("Connected: %s on port %d", args.model_id, args.port)
    try:
        uvicorn.run(
            build_app(args, limits, inference, template),
            host=bind_address(args.hostname),
            port=args.port,
            lifespan="off",
            log_config=None,  # logs go through our handler, in our format
            log_level="warning",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=args.graceful_termination_timeout,
        )
    finally:  # after draining, uvicorn raises the signal again, and _exit ends the process
        engine.stop()


def draw_no_bars() -> None:
    """compressed-tensors draws its progress bars whatever TQDM_DISABLE says; a log has no room for them."""
    from tqdm import tqdm  # type: ignore[import-untyped] # tqdm has no types here

    begin = tqdm.__init__

    def begin_silently(bar: tqdm, *arguments: Any, **options: Any) -> None:
        begin(bar, *arguments, **{**options, "disable": True})

    tqdm.__init__ = begin_silently


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
