"""The checks of each lesson's exercises."""
