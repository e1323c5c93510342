"""What happens while a model is trained: the loop, its guard and watch, its view and trackers."""
