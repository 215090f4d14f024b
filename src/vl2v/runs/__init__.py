"""Runs: from a configuration to a run folder, and from a run folder back to a student."""
