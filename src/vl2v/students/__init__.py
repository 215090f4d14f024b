"""Students: a small backbone, a projector, and the text classifier on top of them."""
