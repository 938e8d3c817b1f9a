"""Is the data set fit to be trained on? Facts about it, a checklist over them, and one page for people."""
