"""Train the examples of a file with Unsloth, and print how many tokens a second it reaches, as JSON.

Run by the Python of Unsloth's own environment, without this project's packages. ``--plain`` leaves Unsloth out: a
rehearsal on a CPU, where it cannot be imported.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    given = json.loads(options.file.read_text(encoding="utf-8"))
    model = plain_model(given) if options.plain else unsloth_model(given)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, given, folder)
        times = stepping_clock(trainer)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(each["input_ids"]) for each in given["examples"])
    steps = given["steps"]  # the first one is a warm-up and not measured
    print(json.dumps({"tokensPerSecond": tokens * (steps - 1) / steps / (times[-1] - times[0]), "losses": losses}))


def unsloth_model(given: dict[str, Any]) -> tuple[Any, Any]:
    """As Unsloth documents it, without checkpointing of activations, which it does not need here; its fast adapters
    have no dropout."""
    from unsloth import FastLanguageModel  # first: it changes the libraries that follow

    model, tokenizer = FastLanguageModel.from_pretrained(
        given["model"], max_seq_length=given["maxLength"], load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=given["rank"],
        lora_alpha=given["alpha"],
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=False,
        random_state=given["seed"],
    )
    return model, tokenizer


def plain_model(given: dict[str, Any]) -> tuple[Any, Any]:
    """The same adapter by PEFT, on a base that is not rounded."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(given["model"])
    adapter = LoraConfig(r=given["rank"], lora_alpha=given["alpha"], target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(base, adapter), AutoTokenizer.from_pretrained(given["model"])


def trainer_of(model: tuple[Any, Any], given: dict[str, Any], folder: str) -> Any:
    """TRL's, which Unsloth has changed by now: it drops padding by itself where it can."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        output_dir=folder,
        max_steps=given["steps"],
        per_device_train_batch_size=given["batch"],
        gradient_accumulation_steps=given["passes"],
        learning_rate=given["rate"],
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=torch.cuda.is_available(),
        max_length=given["maxLength"],
        seed=given["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=model[0], processing_class=model[1], args=settings, train_dataset=Dataset.from_list(given["examples"])
    )


def stepping_clock(trainer: Any) -> list[float]:
    """The time at the end of each step, recorded during training."""
    import torch
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc] # transformers has no types
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer.add_callback(Clock())
    return times


if __name__ == "__main__":
    main()
