"""From files to rows: sources, formats and readers."""
