"""One engine and the stages it trains: every part of the model learns in the same loop."""
