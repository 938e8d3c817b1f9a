"""Will it fit, how long will it take, what will it cost: from a model's config.json, before a GPU is requested."""
