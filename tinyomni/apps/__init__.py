"""Programs to talk to the model: a terminal chat and a page in the browser."""
