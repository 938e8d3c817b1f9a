"""From adapter and base to a checkpoint that a server loads."""
