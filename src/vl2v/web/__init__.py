"""What our servers have in common: requests gathered into batches, bodies counted, metrics, where to listen."""
