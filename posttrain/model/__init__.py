"""The policy and whatever else answers or scores: loaded, trusted, run, served."""
