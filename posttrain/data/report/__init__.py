"""What a set of preference pairs will teach, before a run is paid for."""
