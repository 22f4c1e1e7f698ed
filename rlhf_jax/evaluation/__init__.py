"""What a policy or a reward model is worth, measured."""
