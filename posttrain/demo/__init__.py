"""What the demo model and the demo data are made from."""
