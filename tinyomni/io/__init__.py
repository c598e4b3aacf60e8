"""Reading and writing: images, audio, weights."""
