"""The passes of the stage prepare: rows in, a written data set out."""
