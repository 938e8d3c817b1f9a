"""FineTuneJob: observe, plan, status."""
