"""An LLM judge: another model compares the answers that people compare, in both orders."""
