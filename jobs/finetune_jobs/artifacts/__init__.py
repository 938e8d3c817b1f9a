"""What is published: content-addressed folders, the artifact, its card; and what may be removed again."""
