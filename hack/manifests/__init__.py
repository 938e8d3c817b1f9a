"""Generates files from the models: CRDs, the chart's copies and schema, reference pages."""
