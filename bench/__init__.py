"""Measures Wherry beside its peers: `make bench`, `make bench-quick`. See README.md."""
