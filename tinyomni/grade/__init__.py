"""What a learner does, and what the course says to it."""
