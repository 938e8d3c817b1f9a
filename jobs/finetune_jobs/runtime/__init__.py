"""What all stages share: command line, input, log and result."""
