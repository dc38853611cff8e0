"""One file a scenario: which contestants, which requests, which thresholds."""
