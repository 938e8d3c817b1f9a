"""Everything in the repository that is made from the models: CRDs, the chart's copies and schema, reference pages."""
