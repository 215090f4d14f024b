"""vl2v: small image classifiers, taught by a vision-language model, that work on domains they never saw."""

__version__ = "0.1.0"
