"""The client of OpenAI-compatible chat APIs: rate, retries, budget and journal of the requests to teachers, judges and
other models under comparison."""
