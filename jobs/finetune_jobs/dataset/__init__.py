"""What prepare makes a data set with: sources, readers, validation, cleaning, duplicates, division.

``split`` says by hashes alone which unit goes into which part; ``division`` puts the examples of a set through it, with
the parts and groups that the user named, and refuses leaks.
"""
