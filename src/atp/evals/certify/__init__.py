"""The guarantee: p-values, fixed-sequence testing, and the run that fills a certificate."""
