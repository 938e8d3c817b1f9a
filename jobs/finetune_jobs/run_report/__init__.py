"""One page for a whole run: its goals first, then its data, its training, its evaluation and what it has used."""
