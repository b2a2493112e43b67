"""Makes prompts of rows, and checks the shape of answers."""
