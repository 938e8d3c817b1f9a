"""What is published: content-addressed folders, the artifact, its model card; and what may be deleted again."""
