"""Teachers and students as pure functions over parameter dicts, and their checkpoints."""
