"""The AR detector and its two pretrained relatives (DESIGN 7): features, prompts, model, loss, training, scores."""
