"""Which example is in which part: near duplicates, groups, leaks, shares."""
