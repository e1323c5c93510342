"""From an adapter to files that run elsewhere, each proven to behave like the adapter."""
