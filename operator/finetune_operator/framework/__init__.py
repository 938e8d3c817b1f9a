"""What any operator needs and knows no kind of resource: API client, cache, queue, reconciler, conditions, events."""
