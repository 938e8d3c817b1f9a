"""From a row to an example, and what is known of each."""
