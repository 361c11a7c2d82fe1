"""Tasks with known answers, to train and to gate models: problems, prompts and the scoring of answers."""
