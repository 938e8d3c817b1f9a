"""What prepare makes a data set with: sources, readers, validation, cleaning, duplicates, division."""
