"""Writes jobs/finetune_jobs/fit/families.json: what the code of each model family in transformers fixes."""
