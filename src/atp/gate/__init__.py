"""Training the modules of trained methods beside a frozen model: `atp train-gate`. The engine runs as it is meanwhile."""
