"""What tuning did to a model beside its task: general ability and safety, against the base model."""
