"""The frame of every stage: its command line, its input, its log, its result."""
