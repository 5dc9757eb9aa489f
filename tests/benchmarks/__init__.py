"""Speed measured side by side with the peers, in one process; no tests."""
