"""Who answers in an evaluation. What is asked, and what answers are worth, knows nothing of it."""
