"""What everything else stands on: errors, wording, progress, documents."""
