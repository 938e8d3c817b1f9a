"""What metric containers measure: what they are given, what they wrote, what it amounts to."""
