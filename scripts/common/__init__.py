"""What both training scripts need and neither is about."""
