"""Teachers as the train step sees them: cached once, or run online."""
