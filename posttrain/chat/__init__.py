"""Talk to a model, and to the model that it was trained from, in a terminal or a browser."""
