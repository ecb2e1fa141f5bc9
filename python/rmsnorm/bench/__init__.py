"""Times and memory of the operator and its peers, beside a copy of the same bytes in one run."""
