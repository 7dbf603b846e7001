"""Training data: sources -> records -> tokenised examples in indexed files -> batches."""
