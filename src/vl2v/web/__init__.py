"""What our servers have in common: requests gathered into batches, metrics, where to listen."""
