"""Human review: people compare answers side by side without knowing whose they are, and their votes are counted."""
